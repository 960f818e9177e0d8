"""The default method: its two stages, its candidates, and whole runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from averaged import CLASSES, D, shifted
from in_memory import features, nothing

from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import ballot, local, methods, mixture
from fedclip_edge.learning.ballot import DEFAULT
from fedclip_edge.learning.methods import auto, gda
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.learning.strategy import State
from fedclip_edge.records import F32, Features, Model, Plan, Scalar

pytestmark = pytest.mark.one_python

DEVICES = ("cam-a", "cam-b", "cam-c")
TEST = shifted(300, 99)


class Sides:
    """The pictures of one device."""

    def __init__(self, train: Features, validation: Features) -> None:
        self.train = train
        self.validation = validation


def plan_of(rounds: int = 4, **options: Scalar) -> Plan:
    return methods.with_defaults(Plan("auto", options, rounds=rounds, seed=3))


def run(plan: Plan, sides: Mapping[str, Sides]) -> list[Model]:
    """The models of a run, from that of round 0 to the last."""
    schedule = Schedule(plan, CLASSES, D)
    models: list[Model] = [schedule.initial()]
    state: State = {}
    for closed in range(len(schedule.steps)):
        total = schedule.total(closed, plan.max_norm)
        for name, its in sides.items():
            total.add(local.answer(schedule, models[-1], its, name))
        following, state = schedule.close(models[-1], total, state)
        assert following.round == closed + 1
        shapes = {n: term.shape for n, term in following.parameters.items()}
        assert shapes == schedule.layout(closed + 1).parameters
        models.append(following)
    return models


def fleet(train: int, validation: int) -> dict[str, Sides]:
    return {
        name: Sides(shifted(train, i), shifted(validation, 50 + i) if validation else nothing(D))
        for i, name in enumerate(DEVICES)
    }


def logits(model: Model) -> F32:
    return methods.predict(model, TEST.vectors, CLASSES)


def accuracy(found: F32) -> float:
    return float(np.mean(found.argmax(axis=1) == TEST.labels))


def rows() -> list[dict[str, float]]:
    """The candidates, each with the share of every member."""
    shares = auto.METHOD.shares
    return [dict(zip(shares, row, strict=True)) for row in zip(*shares.values(), strict=True)]


# --- the candidates ------------------------------------------------------------------------------


def test_the_first_candidate_is_zero_shot_and_the_default_is_the_mean_of_both() -> None:
    zero_shot, default = rows()[0], rows()[ballot.DEFAULT]
    assert {label for label, share in zero_shot.items() if share} == {mixture.ZERO_SHOT}
    of_gda = {label: its[ballot.DEFAULT] for label, its in gda.METHOD.shares.items()}
    assert default == {**{label: share / 2 for label, share in of_gda.items()}, "fedclip": 0.5}


def test_every_candidate_of_gda_stands_and_so_does_the_adapter_alone() -> None:
    for row in zip(*gda.METHOD.shares.values(), strict=True):
        assert {**dict(zip(gda.METHOD.shares, row, strict=True)), "fedclip": 0.0} in rows()
    alone = [row for row in rows() if row["fedclip"] == 1]
    assert [{label for label, share in row.items() if share} for row in alone] == [{"fedclip"}]
    assert len(rows()) <= ballot.CANDIDATES


# --- the two stages ------------------------------------------------------------------------------


def test_gda_has_one_round_and_the_adapter_the_others() -> None:
    first, second = auto.stages(plan_of(4, epochs=2, min_per_class=3))
    assert (first.method, first.rounds, first.options) == ("gda", 1, {"min_per_class": 3})
    assert (second.method, second.rounds) == ("fedclip", 3)
    assert second.options["epochs"] == 2


def test_the_adapter_learns_unless_the_plan_says_otherwise() -> None:
    """The published settings change CLIP little (docs/explanation/methods.md)."""
    _, second = auto.stages(plan_of())
    learns = {"loss": "cross-entropy", "lr": 1e-3, "beta2": 0.999, "weight_decay": 0.0}
    assert {name: second.options[name] for name in learns} == learns
    assert auto.stages(plan_of(loss="contrastive"))[1].options["loss"] == "contrastive"


def test_the_strategy_is_for_the_adapter() -> None:
    plan = replace(plan_of(), strategy="fedavgm", strategy_options={"momentum": 0.5})
    first, second = auto.stages(methods.with_defaults(plan))
    assert (first.strategy, first.strategy_options) == ("fedavg", {})
    assert (second.strategy, second.strategy_options) == ("fedavgm", {"momentum": 0.5})


def test_a_run_has_eleven_rounds_and_a_vote_by_default() -> None:
    plan = methods.with_defaults(Plan("auto"))
    assert [its.rounds for its in auto.stages(plan)] == [1, 10]
    assert [step.kind for step in Schedule(plan, CLASSES, D).steps] == ["round"] * 11 + ["vote"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 1}, 'rounds = 1 is too few; write rounds = 2 or more, or method = "gda"'),
        ({"vote": "off"}, 'auto mixes two methods by a vote; leave out vote = "off"'),
        ({"personal_epochs": 3}, "auto learns from validation pictures too"),
        ({"options": {"min_per_class": 0}}, "min_per_class: expected 1 or more, got 0"),
        ({"options": {"share": 0.5}}, "auto options: unknown key 'share'"),
        ({"options": {"lr": 2.0}}, "lr: expected above 0 and at most 1"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        methods.with_defaults(replace(Plan("auto"), **changes))  # type: ignore[arg-type]
    assert message in str(refused.value)


# --- whole runs ----------------------------------------------------------------------------------


def test_without_a_vote_the_result_is_the_mean_of_gda_and_the_adapter() -> None:
    """The devices have too few validation pictures to vote."""
    sides = fleet(40, 4)
    models = run(plan_of(4, min_per_class=1), sides)
    adapter = ballot.members_of(models[-2])["fedclip"]
    of_gda = run(
        methods.with_defaults(Plan("gda", {"min_per_class": 1}, rounds=1, vote="off")), sides
    )
    expected = logits(of_gda[-1]) + logits(Model("fedclip", 4, adapter))
    np.testing.assert_allclose(logits(models[-1]), expected / 2, rtol=1e-4, atol=1e-3)


def test_without_sums_and_without_a_vote_the_result_is_zero_shot() -> None:
    models = run(plan_of(4, min_per_class=1000), fleet(40, 4))
    expected = logits(Model("zeroshot", 0, {}))
    np.testing.assert_allclose(logits(models[-1]), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("counts", "candidate"),
    [
        ([2, 2, 2], DEFAULT),
        ([1, 1, 4], DEFAULT),
        ([0, 9, 9], DEFAULT + 1),
        ([1, 1, 3], DEFAULT + 1),
    ],
)
def test_without_a_vote_the_adapter_has_a_part_only_if_it_knows_every_class(
    counts: list[int], candidate: int
) -> None:
    assert auto.without_vote({"train.counts": np.array(counts)}) == candidate
    assert auto.without_vote({}) == DEFAULT + 1
    shares = {label: its[candidate] for label, its in auto.METHOD.shares.items()}
    assert (shares["fedclip"] == 0) == (candidate != DEFAULT)


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "median"])
def test_other_strategies_keep_their_state_beside_that_of_the_vote(strategy: str) -> None:
    sides = fleet(40, 12)
    plan = methods.with_defaults(replace(plan_of(4, min_per_class=1), strategy=strategy))
    last = run(plan, sides)[-1]
    assert accuracy(logits(last)) > accuracy(logits(Model("zeroshot", 0, {})))


def test_a_run_with_a_vote_ends_above_zero_shot() -> None:
    last = run(plan_of(4, min_per_class=1), fleet(60, 30))[-1]
    zero_shot = accuracy(logits(Model("zeroshot", 0, {})))
    assert accuracy(logits(last)) > zero_shot + 0.03


def test_where_the_texts_are_right_the_result_is_as_good() -> None:
    """Six classes' pictures that lie around their texts: nothing can be gained."""
    sides = {
        name: Sides(features(20, i, CLASSES, noise=0.1), features(20, 70 + i, CLASSES, noise=0.1))
        for i, name in enumerate(DEVICES)
    }
    last = run(plan_of(3), sides)[-1]
    test = features(200, 9, CLASSES, noise=0.1)
    found = methods.predict(last, test.vectors, CLASSES)
    assert np.mean(found.argmax(axis=1) == test.labels) == 1


def test_the_models_between_the_exchanges_classify() -> None:
    models = run(plan_of(3, min_per_class=1), fleet(40, 12))
    assert [model.method for model in models] == ["auto"] * 5
    for model in models:
        assert np.isfinite(logits(model)).all()
