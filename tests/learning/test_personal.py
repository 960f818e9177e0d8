"""The personal model: never worse on validation pictures, and usable like any other model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from averaged import CLASSES, D, shifted
from in_memory import Fleet, features, nothing
from local_trainer import use, work_of
from opened import opened

from fedclip_edge import model_file
from fedclip_edge.agent.trainer import LocalTrainer
from fedclip_edge.config.fleet import RunRules
from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import gate, methods
from fedclip_edge.learning.evaluation import goodness, top1
from fedclip_edge.learning.personal import personal
from fedclip_edge.records import Features, Model, Plan

LEARNING = ["clip-adapter", "fedclip", "linear", "lowrank", "ridge"]


@dataclass(frozen=True, eq=False)
class Sides:
    train: Features
    validation: Features


SIDES = Sides(shifted(60, 1), shifted(40, 2))


def plan_of(method: str, epochs: int = 3, **changes: object) -> Plan:
    its = methods.with_defaults(Plan(method, rounds=1, vote="off", personal_epochs=1, **changes))  # type: ignore[arg-type]
    return replace(its, personal_epochs=1 if methods.get(method).traits.one_round else epochs)


def last(plan: Plan) -> Model:
    """The last model of a run in which nothing was trained."""
    return replace(methods.initial(plan, CLASSES, D), round=plan.rounds)


def right(model: Model, data: Features) -> float:
    return top1(methods.predict(model, data.vectors, CLASSES), data.labels)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", LEARNING)
def test_on_validation_it_is_never_worse_than_the_shared_model(method: str, seed: int) -> None:
    plan = plan_of(method)
    sides = Sides(features(30, seed, CLASSES, noise=2.0), features(40, seed + 50, CLASSES))
    if seed % 2:  # a device with wrong labels
        misled = replace(sides.train, labels=(sides.train.labels + 1) % len(CLASSES.names))
        sides = replace(sides, train=misled)
    shared = last(plan)
    own = personal(plan, shared, sides, CLASSES, "cam")
    assert own is not None
    scores = [
        goodness(methods.predict(model, sides.validation.vectors, CLASSES), sides.validation.labels)
        for model in (own, shared)
    ]
    assert scores[0][0] >= scores[1][0]


@pytest.mark.parametrize("method", LEARNING)
def test_where_the_device_differs_it_learns_that(method: str) -> None:
    learns = {"loss": "cross-entropy", "lr": 0.01, "weight_decay": 0.0}
    plan = plan_of(method, 20, options=learns if method == "fedclip" else {})
    shared = last(plan)
    own = personal(plan, shared, SIDES, CLASSES, "cam")
    assert own is not None
    assert gate.is_in(own)
    assert right(own, SIDES.validation) >= right(shared, SIDES.validation)
    assert own.round == shared.round


def test_pictures_that_mislead_leave_the_shared_model() -> None:
    train = features(60, 1, CLASSES, noise=0.2)
    misled = replace(train, labels=(train.labels + 1) % len(CLASSES.names))
    plan = plan_of("linear", 5, options={"lr": 1.0})
    shared = last(plan)
    own = personal(plan, shared, Sides(misled, features(40, 2, CLASSES)), CLASSES, "cam")
    assert own is shared


def test_there_is_none_without_pictures_to_train_or_to_choose_by() -> None:
    plan = plan_of("linear")
    empty = nothing(D)
    for sides in (Sides(empty, SIDES.validation), Sides(SIDES.train, empty)):
        assert personal(plan, last(plan), sides, CLASSES, "cam") is None


def test_it_is_made_after_the_last_round_and_where_the_plan_says_so() -> None:
    plan = plan_of("linear")
    assert personal(plan, methods.initial(plan, CLASSES, D), SIDES, CLASSES, "cam") is None
    without = replace(plan, personal_epochs=0)
    assert personal(without, last(plan), SIDES, CLASSES, "cam") is None


def test_the_fleets_bounds_are_not_the_devices_own() -> None:
    """A personal model is never sent, so the plan's bounds on updates do not apply to it."""
    plan = plan_of("linear", options={"lr": 0.05, "weighting": "pictures"})
    bound = replace(plan, max_norm=1e-3, max_weight=8)
    one, other = (personal(its, last(its), SIDES, CLASSES, "cam") for its in (plan, bound))
    assert one is not None
    assert other is not None
    assert gate.is_in(other)
    assert other.parameters["own/weight"].tobytes() == one.parameters["own/weight"].tobytes()


def test_training_that_runs_away_leaves_the_shared_model() -> None:
    far: dict[str, str | float] = {"optimizer": "sgd", "lr": 1.0, "proximal_mu": 1e6}
    plan = plan_of("linear", 2, options=far)
    shared = last(plan)
    assert personal(plan, shared, SIDES, CLASSES, "cam") is shared


def test_the_same_device_makes_the_same_bytes() -> None:
    plan = plan_of("fedclip")
    one, other = (personal(plan, last(plan), SIDES, CLASSES, "cam") for _ in range(2))
    assert one is not None
    assert other is not None
    assert {n: t.tobytes() for n, t in one.parameters.items()} == {
        n: t.tobytes() for n, t in other.parameters.items()
    }


def test_a_strategy_has_no_part_in_it() -> None:
    plan = plan_of("linear", strategy="median")
    own = personal(plan, last(plan), SIDES, CLASSES, "cam")
    assert own is not None
    shapes = methods.shapes_beside(own, plan, CLASSES, D)
    assert {name: term.shape for name, term in own.parameters.items()} == shapes
    # The weights of the shared model.
    np.testing.assert_array_equal(own.parameters["weight"], CLASSES.vectors)


@pytest.mark.parametrize(
    ("method", "epochs", "message"),
    [
        ("zeroshot", 1, "zeroshot trains nothing; leave out personal_epochs"),
        ("tip-adapter", 1, "tip-adapter already makes a personal model on each device"),
        ("ridge", 2, "ridge computes its model in one step, .*; write personal_epochs = 1"),
    ],
)
def test_where_it_cannot_be_it_is_refused(method: str, epochs: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        methods.with_defaults(Plan(method, personal_epochs=epochs))
    with pytest.raises(ValueError, match="personal_epochs: expected 0 to 1000"):
        Plan("fedclip", personal_epochs=-1)


def test_in_a_run_each_device_keeps_its_own_and_reports_it(tmp_path: Path) -> None:
    plan = Plan("linear", {"lr": 0.02}, rounds=2, vote="off", personal_epochs=5)
    fleet = opened(Fleet(tmp_path, plan, RunRules(devices=2, quorum=1.0), classes=CLASSES))
    for i in range(2):
        session = fleet.start_device(f"cam-{i}", shifted(60, i), shifted(60, i + 9))
        assert isinstance(session.work.learner, LocalTrainer)
        data = work_of(session.work.learner).data
        use(session.work.learner, replace(data, validation=shifted(40, i + 5)))
    fleet.run()
    reports = fleet.journal.reports.all(fleet.coordinator.run_state.run.id)
    assert all(("personal" in report.accuracy) == (report.round == 2) for report in reports)
    for report in reports[-2:]:
        found = model_file.read(tmp_path / report.device / "personal.safetensors").model
        asked = shifted(60, int(report.device[-1]) + 9)
        assert report.accuracy["personal"] == right(found, asked)
