"""Learning on a device: the fit, the local baseline, and the measured accuracies."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from in_memory import class_texts, features

from fedclip_edge.learning import local, methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.records import Features, Model, Plan

CLASSES = class_texts()
DIM = 8
PLAN = Plan(options={"loss": "cross-entropy", "lr": 0.01}, rounds=3, vote="off")
SCHEDULE = Schedule(PLAN, CLASSES, DIM)


@dataclass(frozen=True, eq=False)
class Sides:
    train: Features
    validation: Features


SIDES = Sides(features(40, 1, CLASSES), features(10, 2, CLASSES))


def terms(model: Model) -> dict[str, bytes]:
    return {name: term.tobytes() for name, term in model.parameters.items()}


def test_a_fit_is_the_methods_own_with_a_seed_of_plan_round_and_device() -> None:
    model = methods.initial(PLAN, CLASSES, DIM)
    for device, closed in (("a", 0), ("a", 1), ("b", 1)):
        there = replace(model, round=closed)
        update = local.answer(SCHEDULE, there, SIDES, device)
        seed = local.training_seed(PLAN.seed, closed, device)
        expected = methods.fit(LocalTask(PLAN, there, SIDES.train, SIDES.validation, CLASSES, seed))
        for name, term in expected.delta.items():
            np.testing.assert_array_equal(update.delta[name], term)


def test_alone_is_a_federation_of_one() -> None:
    alone = local.alone(PLAN, CLASSES, DIM)
    model = methods.initial(PLAN, CLASSES, DIM)
    assert terms(alone.model) == terms(model)
    for _ in range(PLAN.rounds):
        update = local.answer(SCHEDULE, model, SIDES, "cam")
        total = ExactSum(PLAN)
        total.add(update)
        model, _ = methods.combine(model, total, {})
        alone.train(SIDES, "cam")
        assert terms(alone.model) == terms(model)
    assert alone.model.round == PLAN.rounds


def test_a_measure_is_of_test_features_and_needs_some() -> None:
    model = methods.initial(PLAN, CLASSES, DIM)
    test = features(20, 3, CLASSES)
    found = local.measure(model, test, CLASSES)
    logits = methods.predict(model, test.vectors, CLASSES)
    assert found.top1 == float(np.mean(logits.argmax(axis=1) == test.labels))
    with pytest.raises(ValueError, match="no test pictures"):
        local.measure(model, features(0, 3, CLASSES), CLASSES)
