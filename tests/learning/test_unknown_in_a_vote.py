"""The threshold for unknown pictures that a vote measures."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from in_memory import class_texts, features

from fedclip_edge.errors import PeerError
from fedclip_edge.learning import ballot, gate, local, methods, mixture, unknown
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.learning.operations import NUMPY
from fedclip_edge.learning.run_steps import exchanges
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.learning.unknown import BINS, NEVER
from fedclip_edge.protocol import wire
from fedclip_edge.records import Contribution, Features, Model, Plan, Scalar, Update

CLASSES = class_texts(("ant", "bee", "cat", "dog", "eel", "fly"))
DIM = CLASSES.vectors.shape[1]
OPTIONS: dict[str, dict[str, Scalar]] = {
    "gda": {"min_per_class": 1},
    "ridge": {"min_per_class": 1},
    "linear": {},
}


@dataclass(frozen=True)
class Parts:
    train: Features
    validation: Features


def pictures_of(count: int, seed: int) -> Features:
    """Pictures that are nearly all nearest to the text of their own class."""
    return features(count, seed, CLASSES, noise=0.2)


def parts(pictures: int = 240, validation: int = 120, seed: int = 0) -> Parts:
    whole = pictures_of(pictures + validation, seed)
    cut = [
        Features(whole.vectors[rows], whole.labels[rows], whole.encoder_id)
        for rows in (slice(pictures), slice(pictures, None))
    ]
    return Parts(*cut)


def plan_of(method: str, **changes: str) -> Plan:
    rounds = 3 if method == "linear" else 0
    plan = Plan(method, OPTIONS[method], rounds=rounds)
    return methods.with_defaults(replace(plan, **changes))  # type: ignore[arg-type]


def trained(plan: Plan, sides: Parts, count: int | None = None) -> Model:
    """The model after some exchanges of a fleet of one device; after all by default."""
    schedule = Schedule(replace(plan, max_norm=1e8), CLASSES, DIM)
    alone = local.Alone(schedule, schedule.initial())
    for _ in range(exchanges(plan) if count is None else count):
        alone.train(sides, "cam-0")
    return alone.model


def scores(model: Model, shown: Features) -> np.ndarray:
    zero_shot = methods.predict(zeroshot.MODEL, shown.vectors, CLASSES)
    logits = methods.predict(model, shown.vectors, CLASSES)
    gain = unknown.rule_of(model.parameters).gain
    return np.asarray(unknown.score(NUMPY, logits, zero_shot, CLASSES.logit_scale, gain))


@pytest.mark.parametrize("method", sorted(OPTIONS))
def test_a_model_that_a_vote_made_calls_few_known_pictures_unknown(method: str) -> None:
    plan = plan_of(method)
    model = trained(plan, parts())
    rule = unknown.rule_of(model.parameters)
    assert rule.applies
    layout = Schedule(plan, CLASSES, DIM).layout(exchanges(plan))
    assert {name: its.shape for name, its in model.parameters.items()} == layout.parameters
    assert methods.shapes_beside(model, plan, CLASSES, DIM) == layout.parameters
    fresh = pictures_of(2000, 1)
    assert (scores(model, fresh) < rule.threshold).mean() < 0.09
    noise = np.random.default_rng(0).normal(size=fresh.vectors.shape).astype(np.float32)
    strange = Features(noise, fresh.labels, fresh.encoder_id)
    assert (scores(model, strange) < rule.threshold).mean() > 0.3


@pytest.mark.parametrize("method", sorted(OPTIONS))
def test_a_head_that_is_solved_again_keeps_the_scores_of_the_ballot(method: str) -> None:
    """The vote chooses a temperature, and heads are solved again on more pictures."""
    plan, sides = plan_of(method), parts(48, 96)
    before = trained(plan, sides, exchanges(plan) - 1)
    model = trained(plan, sides)
    fresh = pictures_of(500, 1)
    answer = Schedule(plan, CLASSES, DIM).answer(
        local.task_of(plan, before, sides, CLASSES, "cam-0"), 5
    )
    choice = ballot.decide(answer.sums)
    all_shares = methods.get(method).shares
    mine = {label: its[choice.candidate] for label, its in all_shares.items()}
    standing = mixture.mixed(method, 0, ballot.members_of(before), mine)
    gap = np.median(scores(model, fresh)) / np.median(scores(standing, fresh))
    assert gap == pytest.approx(1, abs=0.05)


def test_without_a_vote_or_with_few_pictures_the_model_never_says_unknown() -> None:
    assert unknown.rule_shapes(trained(plan_of("gda", vote="off"), parts()).parameters) == {}
    few = trained(plan_of("gda"), parts(validation=29))
    assert unknown.rule_of(few.parameters).threshold == NEVER
    assert not unknown.rule_of(few.parameters).applies


def answer_of(sides: Parts) -> Update:
    plan = plan_of("gda")
    model = trained(plan, sides, 1)
    task = local.task_of(plan, model, sides, CLASSES, "cam-0")
    return Schedule(plan, CLASSES, DIM).answer(task, 5)


def test_an_answer_counts_each_picture_once_for_each_candidate() -> None:
    sums = answer_of(parts(validation=40)).sums
    for name in (unknown.KNOWN, unknown.REMOVED):
        assert sums[name].shape == (len(sums["correct"]), BINS)
        assert sums[name].sum(axis=1).tolist() == [40] * len(sums["correct"])
    assert all(not its.any() for its in answer_of(parts(validation=4)).sums.values())


def test_an_answer_is_small() -> None:
    answer = answer_of(parts(validation=600))
    whole = Contribution("run-0", 2, "cam-0", "0" * 64, answer)
    assert len(wire.pack_contribution(whole, "int8")) < 2000


@pytest.mark.parametrize("name", [unknown.KNOWN, unknown.REMOVED])
@pytest.mark.parametrize("change", [1, -1])
def test_false_counts_are_refused(name: str, change: int) -> None:
    answer = answer_of(parts(validation=40))
    ballot.check(answer, 280)
    false = answer.sums[name].copy()
    false[-1, 7] += change
    with pytest.raises(PeerError, match=f"the answer's {name} do not count 40 pictures"):
        ballot.check(replace(answer, sums={**answer.sums, name: false}), 280)
    moved = answer.sums[name].copy()
    moved[0, 3], moved[0, 4] = moved[0, 3] - 99, moved[0, 4] + 99
    with pytest.raises(PeerError, match=f"the answer's {name} do not count 40 pictures"):
        ballot.check(replace(answer, sums={**answer.sums, name: moved}), 280)


def test_a_personal_model_has_the_rule_of_the_shared_one() -> None:
    """It was measured with the logits of the shared model."""
    shared = trained(plan_of("linear"), parts())
    initial = methods.initial(plan_of("linear"), CLASSES, DIM)
    own = replace(initial, parameters={"weight": 9 * initial.parameters["weight"]})
    none = Features(np.zeros((0, DIM), np.float32), np.zeros(0, np.int64), "0" * 64)
    around = gate.gate_of(none, none, np.zeros((0, 6), np.float32))
    beside = gate.beside(shared, own, 1.0, around)
    assert unknown.rule_of(shared.parameters).applies
    assert unknown.rule_of(beside.parameters) == unknown.rule_of(shared.parameters)
    asked = pictures_of(3, 0).vectors
    one, other = (methods.predict(model, asked, CLASSES) for model in (shared, beside))
    assert np.abs(one - other).max() > 1
    one, other = (methods.scores_of(model, asked, CLASSES) for model in (shared, beside))
    np.testing.assert_array_equal(one, other)
