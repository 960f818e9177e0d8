"""The vote: equal sums of any partition, honest answers only, and no decision by noise."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import class_texts, features, nothing
from numpy.typing import NDArray

from fedclip_edge.errors import PeerError
from fedclip_edge.learning import ballot, methods, mixture
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.ballot import DEFAULT, ENOUGH, MOST, TEMPERATURES, Choice
from fedclip_edge.learning.method import scores
from fedclip_edge.learning.unknown import BINS
from fedclip_edge.protocol import wire
from fedclip_edge.records import Arrays, Contribution, Features, Model, Plan, Sums, Update

D = 24
CLASSES = class_texts(tuple(f"class {i}" for i in range(7)), D)
SHARES = {
    "zeroshot": (1.0, 1.0, 0.75, 0.5, 0.0),
    "gda.added": (0.0, 1.0, 0.25, 0.25, 1.0),
    "gda.ridge": (0.0, 0.0, 0.0, 0.25, 0.0),
}
COUNT = 5
STEPS = 2**16


def head(seed: int, size: float = 1.0) -> Arrays:
    random = np.random.default_rng(seed)
    weight = size * random.normal(size=(len(CLASSES.names), D))
    bias = size * random.normal(size=len(CLASSES.names))
    return {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}


def ballot_of(size: float = 1.0, bad: float | None = None) -> Model:
    members = {"gda.added": head(1, size), "gda.ridge": head(2, size)}
    if bad is not None:
        members["gda.ridge"]["weight"][:2] = bad
    return ballot.made("gda", 1, members, SHARES)


def answer(pictures: Features, model: Model | None = None, least: int = 1) -> Update:
    model = ballot_of() if model is None else model
    return ballot.answer(model, pictures, CLASSES, least, lambda name: methods.get(name).logits)


def rows(pictures: Features, of: NDArray[np.int64]) -> Features:
    return Features(pictures.vectors[of], pictures.labels[of], pictures.encoder_id)


def added(answers: list[Update]) -> Sums:
    total = ExactSum(Plan("fedclip"))
    for one in answers:
        ballot.check(one)
        total.add(one)
    return total.sums


# The sums


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, MOST),
    devices=st.integers(1, 9),
    seed=st.integers(0, 2**20),
    size=st.sampled_from([0.1, 3.0, 100.0]),
)
def test_any_partition_of_the_pictures_gives_the_same_sums(
    count: int, devices: int, seed: int, size: float
) -> None:
    pictures, model = features(count, seed, CLASSES), ballot_of(size)
    place = np.random.default_rng(seed).integers(0, devices, count)
    parts = [rows(pictures, np.flatnonzero(place == device)) for device in range(devices)]
    together = added([answer(pictures, model)])
    apart = added([answer(part, model) for part in parts])
    for name, expected in together.items():
        np.testing.assert_array_equal(apart[name], expected, err_msg=name)


def test_the_sums_are_those_of_their_definition() -> None:
    pictures, model = features(90, 3, CLASSES), ballot_of()
    zero_shot = methods.predict(Model("zeroshot", 0, {}), pictures.vectors, CLASSES)
    logits = {"zeroshot": zero_shot.astype(np.float64)}
    for label, its in (("gda.added", head(1)), ("gda.ridge", head(2))):
        unit = pictures.vectors / np.linalg.norm(pictures.vectors, axis=1, keepdims=True)
        logits[label] = unit.astype(np.float64) @ its["weight"].T + its["bias"]
    costs, hits = np.zeros((COUNT, len(TEMPERATURES), 90)), np.zeros((COUNT, 90), bool)
    for k in range(COUNT):
        mixed = sum(SHARES[label][k] * its for label, its in logits.items())
        assert isinstance(mixed, np.ndarray)
        hits[k] = mixed.argmax(axis=1) == pictures.labels
        for t, temperature in enumerate(TEMPERATURES):
            odds = np.exp(temperature * (mixed - mixed.max(axis=1, keepdims=True)))
            chance = odds[np.arange(90), pictures.labels] / odds.sum(axis=1)
            costs[k, t] = np.minimum(-np.log(chance), 16)
    sums = answer(pictures, model).sums
    assert sums["pictures"].tolist() == [90]
    np.testing.assert_array_equal(sums["correct"], hits.sum(axis=1))
    np.testing.assert_array_equal(sums["differ"], (hits ^ hits[DEFAULT]).sum(axis=1))
    # A float32 logit of 100 has an error of a few steps.
    np.testing.assert_allclose(sums["loss"], STEPS * costs.sum(axis=2), rtol=1e-5, atol=90)
    squares = STEPS * ((costs - costs[DEFAULT]) ** 2).sum(axis=2)
    np.testing.assert_allclose(sums["squares"], squares, rtol=1e-4, atol=90)


def test_candidate_0_is_zero_shot_clip_exactly() -> None:
    pictures = features(64, 5, CLASSES)
    alone = ballot.made("gda", 1, {}, {"zeroshot": (1.0, 1.0)})
    expected, got = answer(pictures, alone).sums, answer(pictures).sums
    assert got["correct"][0] == expected["correct"][0]
    np.testing.assert_array_equal(got["loss"][0], expected["loss"][0])
    logits = methods.predict(Model("zeroshot", 0, {}), pictures.vectors, CLASSES)
    assert expected["correct"][0] == (logits.argmax(axis=1) == pictures.labels).sum()


@pytest.mark.parametrize("bad", [3e38, -3e38])  # infinite, or NaN
@pytest.mark.filterwarnings("error")
def test_a_member_that_is_broken_costs_only_the_candidates_that_have_a_share_of_it(
    bad: float,
) -> None:
    pictures = features(64, 5, CLASSES)
    sound, got = answer(pictures), answer(pictures, ballot_of(bad=bad))
    ballot.check(got)
    for k in (0, 1, 2, 4):
        np.testing.assert_array_equal(got.sums["loss"][k], sound.sums["loss"][k])
    assert (got.sums["loss"][3] > sound.sums["loss"][3]).all()


def test_a_ballot_is_evaluated_as_its_default_candidate() -> None:
    pictures = features(40, 8, CLASSES)
    logits = methods.predict(ballot_of(), pictures.vectors, CLASSES)
    unit = scores(
        methods.get("gda").logits, Model("gda", 0, head(1)), pictures.vectors, CLASSES
    ) + methods.predict(Model("zeroshot", 0, {}), pictures.vectors, CLASSES)
    np.testing.assert_allclose(logits, unit, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("count", "least", "voted"), [(0, 1, 0), (4, 5, 0), (5, 5, 5), (9, 5, 9)])
def test_a_device_with_fewer_than_min_votes_pictures_has_no_vote(
    count: int, least: int, voted: int
) -> None:
    found = answer(features(count, 1, CLASSES) if count else nothing(D), least=least)
    ballot.check(found)
    assert found.sums["pictures"].tolist() == [voted]
    assert found.weight == max(1, voted)
    assert any(its.any() for its in found.sums.values()) == (voted > 0)


def test_of_many_pictures_the_same_500_vote_in_any_order() -> None:
    pictures = features(MOST + 77, 4, CLASSES)
    shuffled = np.random.default_rng(0).permutation(len(pictures))
    first, other = answer(pictures), answer(rows(pictures, shuffled))
    assert first.sums["pictures"].tolist() == [MOST]
    for name, its in first.sums.items():
        np.testing.assert_array_equal(other.sums[name], its)
    # Another picture changes at most one of them.
    more = features(1, 99, CLASSES)
    vectors = np.concatenate([pictures.vectors, more.vectors])
    labels = np.concatenate([pictures.labels, more.labels])
    changed = answer(Features(vectors, labels, pictures.encoder_id)).sums["correct"]
    assert (abs(changed - first.sums["correct"]) <= 1).all()


def test_an_answer_to_the_largest_ballot_has_2_kb_at_most() -> None:
    count = ballot.CANDIDATES
    assert all(
        len(its.shares.get("zeroshot", ())) <= count for its in map(methods.get, methods.names())
    )
    shares = {"zeroshot": (1.0,) * count, "linear": tuple(np.linspace(0, 1, count).tolist())}
    model = ballot.made("linear", 1, {"linear": head(2)}, shares)
    found = answer(features(MOST, 6, CLASSES), model)
    contribution = Contribution("run-1234abcd", 2, "camera-0001", "e" * 64, found)
    assert len(wire.pack_contribution(contribution, "int8")) <= 2048


# The check


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 70),
    seed=st.integers(0, 999),
    size=st.sampled_from([0.0, 1e-3, 1.0, 1e3, 1e6, 5e37]),
    bad=st.sampled_from([None, 3e38, -3e38]),
)
@pytest.mark.filterwarnings("error")
def test_every_honest_answer_is_accepted(
    count: int, seed: int, size: float, bad: float | None
) -> None:
    pictures = features(count, seed, CLASSES) if count else nothing(D)
    ballot.check(answer(pictures, ballot_of(size, bad)), declared=count)


HONEST = answer(features(50, 1, CLASSES))


def changed(name: str, place: int | tuple[int, ...], value: int) -> Update:
    its = HONEST.sums[name].copy()
    its[place] = value
    return replace(HONEST, sums={**HONEST.sums, name: its})


MUCH = 50 * 16 * STEPS
IMPOSSIBLE = {
    "no number of pictures": (changed("pictures", 0, -1), "over -1 pictures; expected 0 to 500"),
    "too many": (changed("pictures", 0, 501), "over 501 pictures; expected 0 to 500"),
    "another weight": (replace(HONEST, weight=49), "weight is 49, but it is over 50 pictures"),
    "more correct": (changed("correct", 1, 51), "50 pictures give 0 to 50"),
    "fewer correct": (changed("correct", 1, -1), "correct are from -1"),
    "no difference": (changed("differ", 4, 0), "different pictures allow"),
    "a difference from itself": (changed("differ", DEFAULT, 1), "different pictures allow"),
    "more differences": (changed("differ", 2, 51), "differ are from"),
    "a loss above all": (changed("loss", (0, 0), MUCH + 1), "loss are from"),
    "a negative loss": (changed("loss", (2, 1), -1), "loss are from -1"),
    "a square above all": (changed("squares", (0, 0), 16 * MUCH + 1), "squares are from"),
    "a negative square": (changed("squares", (0, 0), -1), "squares are from -1"),
    "a default unlike itself": (changed("squares", (DEFAULT, 0), 1), "default candidate are not 0"),
    "no doubt": (changed("squares", (4, 0), 0), "squares are smaller than"),
    "a loss from nowhere": (changed("loss", (4, 0), MUCH), "squares are smaller than"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_an_answer_that_no_device_can_give_is_refused_with_the_reason(what: str) -> None:
    ballot.check(HONEST)
    update, reason = IMPOSSIBLE[what]
    with pytest.raises(PeerError, match=reason):
        ballot.check(update)


def test_an_answer_over_more_pictures_than_declared_is_refused() -> None:
    ballot.check(HONEST, declared=50)
    with pytest.raises(PeerError, match="over 50 pictures, but the device declared 49"):
        ballot.check(HONEST, declared=49)


def test_an_answer_without_pictures_has_no_other_number() -> None:
    none = answer(nothing(D))
    with pytest.raises(PeerError, match="0 pictures give 0 to 0"):
        ballot.check(replace(none, sums={**none.sums, "correct": np.array([0, 0, 1, 0, 0])}))


# The decision


@functools.cache
def costs_of(seed: int, count: int) -> NDArray[np.float64]:
    """Costs (K, T, N) of candidates that are equally good: each picture differs by chance."""
    random = np.random.default_rng(seed)
    common = random.exponential(size=(1, 1, count))
    return np.asarray(np.clip(common + 0.3 * random.normal(size=(COUNT, 1, count)), 0, 16)) + (
        np.zeros((1, len(TEMPERATURES), 1))
    )


def sums_of(costs: NDArray[np.float64]) -> Sums:
    count = costs.shape[2]
    return {
        "pictures": np.array([count], np.int64),
        "correct": np.full(COUNT, count // 2, np.int64),
        "differ": np.zeros(COUNT, np.int64),
        "loss": np.rint(STEPS * costs).sum(axis=2).astype(np.int64),
        "squares": np.rint(STEPS * (costs - costs[DEFAULT]) ** 2).sum(axis=2).astype(np.int64),
        "known": np.zeros((COUNT, BINS), np.int64),  # tests/learning/test_unknown_in_a_vote.py
        "removed": np.zeros((COUNT, BINS), np.int64),
    }


def test_without_any_answer_and_below_enough_pictures_the_default_is_taken() -> None:
    assert ballot.decide({}) == Choice()
    costs = costs_of(0, ENOUGH - 1).copy()
    costs[3] /= 100
    assert ballot.decide(sums_of(costs)) == Choice(pictures=ENOUGH - 1)
    costs = costs_of(0, ENOUGH).copy()
    costs[3] /= 100
    assert ballot.decide(sums_of(costs)).candidate == 3


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**20), count=st.integers(ENOUGH, 2000), best=st.integers(0, COUNT - 1))
def test_a_candidate_that_is_clearly_better_is_taken_at_its_best_temperature(
    seed: int, count: int, best: int
) -> None:
    costs = costs_of(seed % 50, count).copy() + 1
    costs[best] -= 0.5
    costs[best, 1] -= 0.4
    choice = ballot.decide(sums_of(costs))
    assert (choice.candidate, choice.temperature) == (best, TEMPERATURES[1])
    assert choice.pictures == count
    assert choice.loss == pytest.approx(float(costs[best, 1].mean()), abs=1e-3)
    assert choice.zero_shot_loss == pytest.approx(float(costs[0].mean(axis=1).min()), abs=1e-3)


def test_chance_hardly_ever_outvotes_the_default() -> None:
    taken = [ballot.decide(sums_of(costs_of(seed, 100))).candidate for seed in range(300)]
    # Four candidates, each with a chance of 7 % to be 1.5 standard errors better.
    assert sum(its != DEFAULT for its in taken) < 0.25 * 300


def test_a_difference_within_the_margin_keeps_the_default() -> None:
    costs = np.ones((COUNT, len(TEMPERATURES), 100))
    error = 0.2 / np.sqrt(99)
    pattern = np.tile([0.2, -0.2], 50)
    for times, taken in ((0.9 * ballot.DOUBT, DEFAULT), (1.1 * ballot.DOUBT, 2)):
        costs[2] = 1 + pattern - times * error
        assert ballot.decide(sums_of(costs)).candidate == taken


def test_equal_candidates_keep_the_default_and_of_two_better_ones_the_first_is_taken() -> None:
    costs = np.ones((COUNT, len(TEMPERATURES), 50))
    assert ballot.decide(sums_of(costs)).candidate == DEFAULT
    costs[[2, 4]] = 0.5
    assert ballot.decide(sums_of(costs)).candidate == 2
    assert ballot.decide(sums_of(costs)).temperature == TEMPERATURES[0]


def test_the_shares_of_a_choice_are_those_of_its_candidate_times_the_temperature() -> None:
    found = ballot.chosen_shares(SHARES, Choice(candidate=3, temperature=0.5))
    assert found == {"zeroshot": 0.25, "gda.added": 0.125, "gda.ridge": 0.125}


# The model


def test_the_shapes_of_a_ballot_and_of_an_answer_are_known_before() -> None:
    model, kinds = ballot_of(), {"weight": (7, D), "bias": (7,)}
    members = {"zeroshot": {}, "gda.added": kinds, "gda.ridge": kinds}
    got = {name: its.shape for name, its in model.parameters.items()}
    assert got == dict(ballot.shapes(members, SHARES))
    sums = {name: its.shape for name, its in HONEST.sums.items()}
    assert sums == dict(ballot.sum_shapes(SHARES))
    heads = ballot.members_of(model)
    assert heads.keys() == SHARES.keys()
    assert mixture.shares_of(model) == {"zeroshot": 1.0, "gda.added": 1.0, "gda.ridge": 0.0}
    for label, its in (("gda.added", head(1)), ("gda.ridge", head(2))):
        assert heads[label].keys() == its.keys()


@pytest.mark.parametrize(
    ("more", "differ", "costlier", "taken"),
    [
        (12, 30, 0.0, 3),  # 12 of 200 pictures, with a standard error of 5.4
        (10, 30, 0.0, DEFAULT),  # less than two errors
        (12, 60, 0.0, DEFAULT),  # an error of 7.7
        (12, 30, 0.5, DEFAULT),  # its probabilities are clearly worse
    ],
)
def test_more_correct_pictures_win_if_they_are_no_chance_and_cost_nothing(
    more: int, differ: int, costlier: float, taken: int
) -> None:
    costs = np.repeat(costs_of(0, 200)[:1], COUNT, axis=0)
    costs[3] += costlier + np.resize([0.01, -0.01], 200)
    sums = sums_of(costs)
    sums["correct"][3] += more
    sums["differ"][3] = differ
    assert ballot.decide(sums).candidate == taken


def test_of_several_better_candidates_the_one_with_the_most_correct_pictures_wins() -> None:
    costs = costs_of(0, 200).copy() + 1
    costs[[2, 3, 4]] -= np.array([0.4, 0.5, 0.4])[:, None, None]
    sums = sums_of(costs)
    assert ballot.decide(sums).candidate == 3
    sums["correct"][4] += 1
    sums["differ"][4] = 1
    assert ballot.decide(sums).candidate == 4
