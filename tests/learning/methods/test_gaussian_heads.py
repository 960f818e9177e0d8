"""Laws of heads that come from class means and one covariance, as `gda`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import class_texts, features, nothing

from fedclip_edge.learning import methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.records import Features, Model, Plan, Update

D = 16
CLASSES = class_texts(("ant", "bee", "cat", "dog"), D)
NOTHING = nothing(D)
Sides = tuple[Features, Features]
pytestmark = pytest.mark.parametrize("method", ["gda"])


def plan_of(method: str) -> Plan:
    return Plan(method, {"min_per_class": 1})


def some(data: Features, rows: Any) -> Features:
    return Features(data.vectors[rows], data.labels[rows], data.encoder_id)


def solved(method: str, sides: Sequence[Sides]) -> Model:
    plan = plan_of(method)
    start, total = methods.initial(plan, CLASSES, D), ExactSum(plan)
    for train, validation in sides:
        total.add(methods.fit(LocalTask(plan, start, train, validation, CLASSES, 0)))
    return methods.combine(start, total, {})[0]


def bytes_of(model: Model) -> dict[str, bytes]:
    return {name: term.tobytes() for name, term in model.parameters.items()}


@settings(max_examples=20)
@given(st.integers(1, 80), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_any_partition_gives_the_bytes_of_one_device_with_all_pictures(
    method: str, count: int, devices: int, seed: int
) -> None:
    train, validation = features(count, seed, CLASSES), features(30, seed + 1, CLASSES)
    random = np.random.default_rng(seed)
    owner, judge = random.integers(0, devices, count), random.integers(0, devices, 30)
    sides = [(some(train, owner == i), some(validation, judge == i)) for i in range(devices)]
    assert bytes_of(solved(method, sides)) == bytes_of(solved(method, [(train, validation)]))


@pytest.mark.parametrize("sides", [[], [(NOTHING, NOTHING)], [(NOTHING, features(9, 1, CLASSES))]])
def test_without_a_training_picture_the_model_is_zero_shot(method: str, sides: list[Sides]) -> None:
    asked = features(20, 3, CLASSES)
    np.testing.assert_allclose(
        methods.predict(solved(method, sides), asked.vectors, CLASSES),
        methods.predict(zeroshot.MODEL, asked.vectors, CLASSES),
        atol=1e-3,
    )


@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [0, 1], [0, 1, 2]])
def test_a_class_that_no_device_has_is_put_by_its_text(method: str, labels: list[int]) -> None:
    data = features(120, 1, CLASSES, noise=0.2)
    rows = [int(np.flatnonzero(data.labels == label)[i]) for i, label in enumerate(labels)]
    asked = features(200, 3, CLASSES, noise=0.1)
    logits = methods.predict(solved(method, [(some(data, rows), NOTHING)]), asked.vectors, CLASSES)
    assert np.isfinite(logits).all()
    assert np.mean(logits.argmax(axis=1) == asked.labels) > 0.8


def test_sums_that_no_pictures_give_make_a_finite_model(method: str) -> None:
    plan = plan_of(method)
    start, total = methods.initial(plan, CLASSES, D), ExactSum(plan)
    train, held = features(40, 1, CLASSES), features(20, 2, CLASSES)
    honest = methods.fit(LocalTask(plan, start, train, held, CLASSES, 0))
    total.add(honest)
    hostile = {name: np.zeros_like(numbers) for name, numbers in honest.sums.items()}
    hostile["train.gram"] = hostile["train.gram"] - 2**30 * 50
    hostile["validation.gram"] = hostile["validation.gram"] - 2**30 * 50
    total.add(Update("sum", 50, {}, hostile))
    model, _ = methods.combine(start, total, {})
    assert all(np.isfinite(term).all() for term in model.parameters.values())
