"""Unknown pictures: the score, the counts, and the threshold that follows from them."""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip_edge.learning import unknown
from fedclip_edge.learning.operations import NUMPY
from fedclip_edge.learning.torch_operations import TORCH
from fedclip_edge.learning.unknown import BINS, NEVER, Rule, Separation
from fedclip_edge.records import F32, I64

SCALE = 100.0


def drawn(pictures: int, classes: int = 6, seed: int = 0) -> tuple[F32, F32, I64]:
    """Logits of a model and of zero-shot CLIP, and labels that mostly agree with both."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, pictures)
    zero_shot = random.normal(20, 2, (pictures, classes)).astype(np.float32)
    zero_shot[np.arange(pictures), labels] += 5
    logits = 2 * zero_shot + random.normal(0, 3, zero_shot.shape).astype(np.float32)
    return logits, zero_shot, labels


def counted(known: dict[int, int], removed: dict[int, int]) -> dict[str, I64]:
    """Counts with `known[b]` and `removed[b]` pictures in bin b."""
    found = {name: np.zeros(BINS, np.int64) for name in (unknown.KNOWN, unknown.REMOVED)}
    for name, its in ((unknown.KNOWN, known), (unknown.REMOVED, removed)):
        for place, count in its.items():
            found[name][place] = count
    return found


@functools.cache
def edges() -> list[float]:
    """The lower edges of all bins but the first, as thresholds that separate two bins."""
    return [unknown.threshold(counted({b: 100}, {b - 1: 100})) for b in range(1, BINS)]


# --- the score -----------------------------------------------------------------------------------


def test_the_score_of_zero_shot_clip_is_its_largest_cosine() -> None:
    _, zero_shot, _ = drawn(50)
    found = unknown.score(NUMPY, zero_shot, zero_shot, SCALE)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, zero_shot.max(axis=1) / SCALE, rtol=1e-5)


def test_a_logit_that_all_classes_share_does_not_change_it() -> None:
    """Training is free to change that part of the logits, because softmax does not see it."""
    logits, zero_shot, _ = drawn(50)
    shared = np.linspace(-40, 40, 50, dtype=np.float32)[:, None]
    np.testing.assert_allclose(
        unknown.score(NUMPY, logits + shared, zero_shot, SCALE),
        unknown.score(NUMPY, logits, zero_shot, SCALE),
        atol=1e-5,
    )


def test_the_gain_undoes_a_change_of_temperature() -> None:
    logits, zero_shot, _ = drawn(50)
    np.testing.assert_allclose(
        unknown.score(NUMPY, np.float32(0.35) * logits, zero_shot, SCALE, 0.35),
        unknown.score(NUMPY, logits, zero_shot, SCALE),
        rtol=1e-5,
    )


def test_numpy_and_torch_give_the_same_scores() -> None:
    logits, zero_shot, _ = drawn(50)
    theirs = unknown.score(TORCH, torch.tensor(logits), torch.tensor(zero_shot), SCALE, 1.5)
    ours = unknown.score(NUMPY, logits, zero_shot, SCALE, 1.5)
    np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-5)


# --- the counts ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(pictures=st.integers(0, 40), cut=st.integers(0, 40), seed=st.integers(0, 20))
def test_the_counts_of_any_partition_add_up_to_the_same(pictures: int, cut: int, seed: int) -> None:
    logits, zero_shot, labels = drawn(pictures, seed=seed)
    whole = unknown.count(logits, zero_shot, SCALE, labels)
    parts = [
        unknown.count(logits[rows], zero_shot[rows], SCALE, labels[rows])
        for rows in (slice(None, cut), slice(cut, None))
    ]
    assert {name: its.shape for name, its in whole.items()} == unknown.sum_shapes()
    for name, its in whole.items():
        assert its.dtype == np.int64
        assert its.sum() == pictures
        np.testing.assert_array_equal(its, sum(part[name] for part in parts))


def test_a_removed_picture_is_scored_as_if_its_class_were_not_in_the_list() -> None:
    logits, zero_shot, labels = drawn(30, classes=4)
    by_hand = [
        unknown.score(
            NUMPY,
            np.delete(logits[i : i + 1], labels[i], axis=1),
            np.delete(zero_shot[i : i + 1], labels[i], axis=1),
            SCALE,
        )[0]
        for i in range(30)
    ]
    found = unknown.count(logits, zero_shot, SCALE, labels)[unknown.REMOVED]
    np.testing.assert_array_equal(found, unknown.histogram(np.array(by_hand, np.float32)))


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes: int) -> None:
    logits, zero_shot, labels = drawn(9, classes)
    found = unknown.count(logits, zero_shot, SCALE, labels)
    assert [its.sum() for its in found.values()] == [9, 9]


def test_impossible_scores_have_a_bin() -> None:
    """A model of huge numbers gives logits that are infinite or NaN."""
    found = unknown.histogram(np.array([np.nan, -np.inf, -5, 0.3, np.inf, 1e30], np.float32))
    assert (found[0], found[-1], found.sum()) == (3, 2, 6)


def test_a_model_of_huge_numbers_is_counted_without_a_warning() -> None:
    logits, zero_shot, labels = drawn(9)
    logits[:3] = np.inf
    logits[3:6] = np.nan
    logits[6:] = -3e38
    found = unknown.count(logits, zero_shot, SCALE, labels)
    assert [its.sum() for its in found.values()] == [9, 9]


# --- the threshold -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(
    known=st.dictionaries(st.integers(0, BINS - 1), st.integers(1, 60), min_size=1, max_size=12),
    removed=st.dictionaries(st.integers(0, BINS - 1), st.integers(1, 60), max_size=12),
)
def test_a_further_known_picture_is_unknown_with_a_probability_of_at_most_5_percent(
    known: dict[int, int], removed: dict[int, int]
) -> None:
    """Each of n + 1 pictures is equally likely to be the further one (split conformal)."""
    sums = counted(known, removed)
    found = unknown.threshold(sums)
    if found == NEVER:
        return
    pictures = sum(known.values())
    place = edges().index(found) + 1  # bins below this one are unknown
    below = int(sums[unknown.KNOWN][:place].sum())
    assert below + 1 <= 0.05 * (pictures + 1)
    assert int(sums[unknown.REMOVED][:place].sum()) > below


def test_every_edge_is_a_threshold_that_float16_keeps() -> None:
    assert all(float(np.float16(edge)) == edge for edge in edges())
    assert all(low < high for low, high in pairwise(edges()))
    for place, edge in enumerate(edges(), start=1):
        at, under = np.float32(edge), np.nextafter(np.float32(edge), np.float32(-9))
        np.testing.assert_array_equal(
            np.flatnonzero(unknown.histogram(np.array([under, at], np.float32))), [place - 1, place]
        )


@pytest.mark.parametrize(
    ("known", "removed"),
    [
        ({100: 18}, {50: 18}),  # too few pictures to promise 5 %
        ({}, {}),
        ({50: 100}, {100: 100}),  # the wrong way round
        ({100: 100}, {100: 100}),  # no difference
        ({0: 100}, {0: 100}),
    ],
    ids=["18 pictures", "none", "inverted", "equal", "lowest bin"],
)
def test_when_the_model_never_says_unknown(known: dict[int, int], removed: dict[int, int]) -> None:
    assert unknown.threshold(counted(known, removed)) == NEVER


def test_nineteen_pictures_are_enough() -> None:
    assert unknown.threshold(counted({100: 19}, {50: 19})) > NEVER


def test_no_known_picture_is_given_up_without_need() -> None:
    """Of 5 % that are allowed, none is used if the others can be told apart without."""
    known, removed = {90: 3, 100: 97}, {50: 100}
    edge = unknown.threshold(counted(known, removed))
    assert (
        Separation(counted(known, {})[unknown.KNOWN], removed_of(removed), edge).known_unknown == 0
    )
    both = counted({90: 3, 100: 97}, {50: 50, 95: 50})
    edge = unknown.threshold(both)
    assert Separation(both[unknown.KNOWN], both[unknown.REMOVED], edge).known_unknown == 0.03


def removed_of(removed: dict[int, int]) -> I64:
    return counted({}, removed)[unknown.REMOVED]


# --- known and other pictures --------------------------------------------------------------------


@settings(deadline=None)
@given(
    known=st.lists(st.integers(0, 30), min_size=1, max_size=20),
    others=st.lists(st.integers(0, 30), min_size=1, max_size=20),
)
def test_the_auroc_counts_the_pairs_in_the_right_order(known: list[int], others: list[int]) -> None:
    right = sum((k > o) + (k == o) / 2 for k in known for o in others)
    found = Separation(
        np.bincount(known, minlength=BINS), np.bincount(others, minlength=BINS)
    ).auroc
    assert found == pytest.approx(right / (len(known) * len(others)))


def test_without_pictures_or_a_threshold_nothing_is_measured() -> None:
    none, some = np.zeros(BINS, np.int64), np.ones(BINS, np.int64)
    assert Separation(none, some).auroc is None
    assert Separation(some, none).auroc is None
    assert Separation(some, some).known_unknown is None
    assert Separation(none, some, 0.25).known_unknown is None
    assert Separation(some, some, 0.25).others_unknown is not None


def test_devices_of_different_thresholds_have_none_together() -> None:
    some = np.ones(BINS, np.int64)
    one, other = Separation(some, some, 0.25), Separation(some, some, 0.5)
    assert (one + one).threshold == 0.25
    assert (one + other).threshold == NEVER
    assert (one + other).known.sum() == 2 * BINS


# --- the rule in a model -------------------------------------------------------------------------


def test_a_rule_is_two_parameters_of_a_model() -> None:
    plain = {"weight": np.ones((2, 3), np.float32)}
    assert unknown.rule_of(plain) == Rule()
    assert not unknown.rule_of(plain).applies
    both = unknown.with_rule(plain, Rule(0.25, 0.5))
    assert unknown.rule_of(both) == Rule(0.25, 0.5)
    assert unknown.rule_of(both).applies
    assert all(its.dtype == np.float32 for its in both.values())
    assert unknown.rule_shapes(both) == {unknown.THRESHOLD: (), unknown.GAIN: ()}
    assert unknown.rule_shapes(plain) == {}
    assert unknown.with_rule(both, Rule()).keys() == both.keys()
