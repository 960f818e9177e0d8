"""Integer sums that no pictures have are refused, and those of any pictures pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedclip_edge.errors import PeerError
from fedclip_edge.learning import moments
from fedclip_edge.learning.moment_check import check_moments, counts_of
from fedclip_edge.records import F32, I64, Features, Update

CLASSES = 4
UNIT = 2**moments.GRID_BITS


def features(vectors: F32, seed: int = 0) -> Features:
    labels = np.random.default_rng(seed).integers(0, CLASSES, len(vectors))
    return Features(vectors, labels, "e" * 64)


@st.composite
def any_features(draw: st.DrawFn, dim: int) -> Features:
    """Features of every kind: equal ones, zeros, one coordinate only, huge and tiny numbers."""
    count = draw(st.integers(0, 30))
    scale = draw(st.sampled_from([1e-40, 1e-20, 1.0, 1e20, 1e38]))
    values = st.floats(-1, 1, width=32)
    fill = draw(st.one_of(st.just(0.0), st.just(1.0), values))
    vectors = draw(
        hnp.arrays(np.float32, (count, dim), elements=values, fill=st.just(np.float32(fill)))
    )
    return features((vectors * scale).astype(np.float32), draw(st.integers(0, 100)))


@st.composite
def two_sides(draw: st.DrawFn) -> tuple[Features, Features]:
    dim = draw(st.sampled_from([1, 2, 3, 7, 64]))
    return draw(any_features(dim)), draw(any_features(dim))


@given(two_sides(), st.integers(1, 6))
@example((features(np.zeros((9, 3), np.float32)), features(np.zeros((0, 3), np.float32))), 1)
def test_the_sums_of_any_pictures_pass(sides: tuple[Features, Features], least: int) -> None:
    update = moments.update(*sides, CLASSES, least)
    check_moments(update, least)
    counts = [int(update.sums[f"{side}.counts"].sum()) for side in moments.SIDES]
    assert counts_of(update.sums) == tuple(counts)


@pytest.mark.parametrize("dim", [2, 5, 100, 511])
@pytest.mark.parametrize("count", [1, 3, 600])
def test_rounding_on_the_grid_passes_in_its_worst_case(dim: int, count: int) -> None:
    """All coordinates are rounded in the same direction by nearly half a step."""
    below, above = 0.0, 0.0
    for seed in range(6):
        steps = np.random.default_rng(seed).integers(1, 2 * UNIT // dim, dim)
        vectors = np.tile((steps + 0.499 * (-1) ** seed).astype(np.float32), (count, 1))
        update = moments.update(features(vectors), features(vectors[:0]), CLASSES, 1)
        check_moments(update, 1)
        trace = np.trace(moments.from_sums("train", update.sums).gram) / count - 1
        below, above = min(below, trace), max(above, trace)
    assert below < 0 < above


def test_sums_with_fewer_pictures_than_coordinates_pass() -> None:
    """X^T X then has eigenvalues of exactly zero, which rounding could make negative."""
    for seed in range(5):
        vectors = np.random.default_rng(seed).normal(5, 1, (20, 300)).astype(np.float32)
        check_moments(moments.update(features(vectors), features(vectors), CLASSES, 1), 1)


# --- lies ----------------------------------------------------------------------------------------

DIM = 6


def honest() -> Update:
    vectors = np.random.default_rng(1).normal(1, 1, (60, DIM)).astype(np.float32)
    return moments.update(features(vectors[:40]), features(vectors[40:]), CLASSES, 1)


def with_sum(name: str, change: Callable[[I64], None]) -> Update:
    update = honest()
    changed = update.sums[name].copy()
    change(changed)
    return replace(update, sums={**update.sums, name: changed})


def diagonal(row: int) -> int:
    """The place of an entry of the diagonal in the packed upper triangle."""
    return sum(DIM - i for i in range(row))


def set_at(place: int | slice | tuple[int, ...], value: int) -> Callable[[I64], None]:
    def change(array: I64) -> None:
        array[place] = value

    return change


def times(factor: int) -> Callable[[I64], None]:
    def change(array: I64) -> None:
        array *= factor

    return change


def move_trace(array: I64) -> None:
    """More than all of one eigenvalue goes to another; the trace stays the same."""
    array[diagonal(0)] += array[diagonal(1)] + 1000
    array[diagonal(1)] = -1000


def set_across(array: I64) -> None:
    """A sum as long as allowed, where the features hardly differ from each other."""
    counts = honest().sums["train.counts"]
    array[2] = 0
    array[2, :2] = int(0.7 * counts[2] * UNIT), -int(0.7 * counts[2] * UNIT)


LIES: dict[str, tuple[Callable[[], Update], str]] = {
    "a negative count": (
        lambda: with_sum("train.counts", set_at(0, -1)),
        "the train counts are from -1 to",
    ),
    "a count beyond exact sums": (
        lambda: with_sum("validation.counts", set_at(0, 2**62)),
        "the validation counts are from",
    ),
    "counts beyond exact sums": (
        lambda: with_sum("train.counts", set_at(slice(0, 4), 2**23)),
        "pictures in all, limit",
    ),
    "more pictures than features": (
        lambda: with_sum("train.counts", set_at(0, 500)),
        "has the trace",
    ),
    "fewer pictures than features": (
        lambda: with_sum("train.counts", times(0)),
        "of class 0 is .* long, but there are 0",
    ),
    "a trace that is too large": (lambda: with_sum("train.gram", times(2)), "has the trace"),
    "a gram matrix of zeros": (lambda: with_sum("validation.gram", times(0)), "has the trace"),
    "a negative gram matrix": (lambda: with_sum("train.gram", times(-1)), "has the trace"),
    "a long sum of a class": (
        lambda: with_sum("train.sums", set_at((2, 0), 40 * UNIT)),
        "the sum of the train features of class 2 is",
    ),
    "a sum across the features": (
        lambda: with_sum("train.sums", set_across),
        "no train features have",
    ),
    "an entry as large as the trace": (
        lambda: with_sum("train.gram", set_at(1, 40 * UNIT**2)),
        "negative eigenvalue",
    ),
    "the smallest int64": (
        lambda: with_sum("train.gram", set_at(1, -(2**63))),
        "negative eigenvalue",
    ),
    "a negative eigenvalue": (lambda: with_sum("train.gram", move_trace), "negative eigenvalue"),
    "a weight below the counts": (lambda: replace(honest(), weight=59), "its counts are 60"),
    "a weight above the counts": (lambda: replace(honest(), weight=61), "its counts are 60"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_in_words(lie: str) -> None:
    make, message = LIES[lie]
    with pytest.raises(PeerError, match=message):
        check_moments(make(), 1)


def test_an_eigenvalue_just_below_zero_is_refused() -> None:
    """A ten-thousandth of the trace goes from the smallest eigenvalue to the largest one."""
    update = honest()
    read = moments.from_sums("train", update.sums)
    scatter = read.gram - (read.sums.T / read.counts) @ read.sums
    values, vectors = np.linalg.eigh(scatter)
    low, high = vectors[:, 0], vectors[:, -1]
    moved = (values[0] + 1e-4 * read.pictures) * (np.outer(high, high) - np.outer(low, low))
    lie = np.rint((read.gram + moved) * UNIT**2)[np.triu_indices(DIM)].astype(np.int64)
    with pytest.raises(PeerError, match="no train features have"):
        check_moments(replace(update, sums={**update.sums, "train.gram": lie}), 1)


def test_sums_without_pictures_are_zeros() -> None:
    nothing = features(np.zeros((0, DIM), np.float32))
    update = moments.update(nothing, nothing, CLASSES, 1)
    check_moments(update, 1)
    gram = update.sums["train.gram"].copy()
    gram[1] = 1
    with pytest.raises(PeerError, match="no train features have"):
        check_moments(replace(update, sums={**update.sums, "train.gram": gram}), 1)


def test_a_class_below_the_plans_least_number_is_refused() -> None:
    update = honest()
    few = int(min(update.sums["train.counts"]))
    check_moments(update, 1)
    with pytest.raises(PeerError, match="pictures; a device leaves out classes with fewer than"):
        check_moments(update, few + 1)


@given(st.integers(0, 39), st.integers(1, UNIT))
def test_one_false_entry_is_refused_or_of_no_effect(place: int, size: int) -> None:
    """A matrix that passes has no eigenvalue that is clearly negative."""
    place %= DIM * (DIM + 1) // 2
    lie = with_sum("train.gram", set_at(place, size * UNIT))
    try:
        check_moments(lie, 1)
    except PeerError:
        return
    read = moments.from_sums("train", lie.sums)
    scatter = read.gram - (read.sums.T / read.counts) @ read.sums
    assert np.linalg.eigvalsh(scatter).min() >= -1e-8 * read.pictures


def test_features_of_zeros_are_left_out() -> None:
    """They have no direction, and their trace would be that of fewer pictures."""
    vectors = np.random.default_rng(2).normal(size=(8, DIM)).astype(np.float32)
    vectors[3] = 0
    labels = np.zeros(8, np.int64)
    sums = moments.send("train", Features(vectors, labels, "e" * 64), CLASSES, 7)
    assert sums["train.counts"].tolist() == [7, 0, 0, 0]
    fewer = moments.send("train", Features(vectors, labels, "e" * 64), CLASSES, 8)
    assert not any(array.any() for array in fewer.values())
