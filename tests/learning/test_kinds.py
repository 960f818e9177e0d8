"""The kinds of method: heads that survive the transfer as float16."""

from __future__ import annotations

import numpy as np
import pytest
from in_memory import class_texts, nothing

from fedclip_edge.learning import methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.kinds import within_float16
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.protocol import codec
from fedclip_edge.records import Features, Plan

D = 64
CLASSES = class_texts(tuple(f"class {i}" for i in range(6)), D)


def nearly_equal(count: int, spread: float) -> Features:
    """Features of an encoder that returns almost the same for every picture."""
    labels = np.arange(count) % len(CLASSES.names)
    vectors = np.ones((count, D)) + 1e-3 * np.eye(D)[labels]
    vectors += spread * np.random.default_rng(0).standard_normal(vectors.shape)
    return Features(vectors.astype(np.float32), labels, "e" * 64)


@pytest.mark.parametrize("method", ["gda"])
@pytest.mark.parametrize("spread", [0.0, 1e-5])
def test_pictures_that_differ_little_give_a_model_that_float16_can_hold(
    method: str, spread: float
) -> None:
    plan, pictures = Plan(method, {"min_per_class": 1}), nearly_equal(300, spread)
    start, total = methods.initial(plan, CLASSES, D), ExactSum(plan)
    total.add(methods.fit(LocalTask(plan, start, pictures, nothing(D), CLASSES, 0)))
    model = methods.combine(start, total, {})[0]
    shapes = {name: term.shape for name, term in model.parameters.items()}
    received = codec.restore("fp16", codec.store("fp16", model.parameters), shapes)
    for name, term in model.parameters.items():
        np.testing.assert_allclose(received[name], term, rtol=1e-3, atol=1e-6)


def test_only_a_head_that_is_too_large_is_scaled() -> None:
    weight, bias = np.eye(3), np.array([1.0, -2.0, 0.0])
    for same, given in zip(within_float16(weight, bias), (weight, bias), strict=True):
        np.testing.assert_array_equal(same, given)
    smaller, its = within_float16(1e9 * weight, 1e9 * bias)
    assert max(smaller.max(), abs(its).max()) <= np.finfo(np.float16).max
    np.testing.assert_allclose(its / smaller[0, 0], bias)
    assert not within_float16(0 * weight, 0 * bias)[0].any()
