"""The operations in numpy and in torch: the same numbers, and CLIP's logits from both."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import class_texts, features, nothing
from numpy.typing import NDArray

from fedclip_edge.learning import gate, methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.evaluation import probabilities
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.operations import NUMPY, Array, Operations, cosine_logits
from fedclip_edge.learning.torch_operations import TORCH
from fedclip_edge.records import F32, Model, Plan

N, D, C = 7, 12, 4
CLASSES = class_texts(("ant", "bee", "cat", "dog"), D)
BOTH = pytest.mark.parametrize("ops", [NUMPY, TORCH], ids=["numpy", "torch"])
NAMES = methods.names()


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> F32:
    random = np.random.default_rng([seed, *shape])
    return (scale * random.normal(size=shape)).astype(np.float32)


def for_ops(ops: Operations, array: F32) -> Array:
    return array if ops is NUMPY else torch.tensor(array)


def computed(ops: Operations, vectors: F32, texts: F32, scale: float = 100.0) -> F32:
    return np.asarray(cosine_logits(ops, for_ops(ops, vectors), for_ops(ops, texts), scale))


def naive_logits(vectors: F32, texts: F32, scale: float) -> NDArray[np.float64]:
    f, t = vectors.astype(np.float64), texts.astype(np.float64)
    return np.array([[scale * (x @ y) / np.sqrt(x @ x) for y in t] for x in f])


# --- each operation ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["normalize", "relu", "tanh", "exp", "softmax", "largest"])
@pytest.mark.parametrize("rows", [0, 1, N])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0])
def test_an_operation_gives_the_same_in_both(name: str, rows: int, scale: float) -> None:
    x = drawn(rows, D, scale=scale)
    before = x.copy()
    ours, theirs = getattr(NUMPY, name)(x), getattr(TORCH, name)(torch.tensor(x))
    assert ours.dtype == np.float32
    assert ours.shape == tuple(theirs.shape)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-6, atol=1e-7)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("bias", [None, drawn(C, seed=5)])
def test_linear_gives_the_same_in_both(bias: F32 | None) -> None:
    x, weight = drawn(N, D), drawn(C, D, seed=2)
    theirs = TORCH.linear(
        torch.tensor(x), torch.tensor(weight), None if bias is None else torch.tensor(bias)
    )
    ours = NUMPY.linear(x, weight, bias)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-5)


def test_softmax_of_large_numbers_is_finite() -> None:
    found = NUMPY.softmax(np.array([[1e30, 0.0], [-1e30, -1e30]], np.float32))
    np.testing.assert_array_equal(found, np.array([[1, 0], [0.5, 0.5]], np.float32))


# --- every method --------------------------------------------------------------------------------


@cache
def fitted(name: str, seed: int) -> Model:
    """A model after one round; a personal method gives the device's own model."""
    plan = Plan(name, seed=seed, max_norm=1e6)
    task = LocalTask(
        plan,
        methods.initial(plan, CLASSES, D),
        features(40, seed, CLASSES, noise=0.5),
        nothing(D),
        CLASSES,
        seed,
    )
    total = ExactSum(plan)
    total.add(methods.fit(task))
    return methods.personal(task) or methods.combine(task.model, total, {})[0]


def assert_same_probabilities(model: Model, vectors: F32) -> None:
    """Compare the probabilities of numpy and torch, with a softmax in float64 for torch.

    A step of float32 is a larger step of the probability if the logits are larger, so the tolerance
    of 1e-6 grows with logits above 10. CLIP's own logits lie within 100.
    """
    terms = {name: torch.tensor(term) for name, term in model.parameters.items()}
    texts = torch.tensor(CLASSES.vectors)
    formula = methods.logits_of(model)
    with torch.inference_mode():
        logits = formula(TORCH, terms, torch.tensor(vectors), texts, CLASSES.logit_scale)
        theirs = torch.softmax(logits.double(), dim=1).numpy()
    ours = probabilities(methods.predict(model, vectors, CLASSES))
    tolerance = 1e-6 * max(1.0, float(logits.abs().max()) / 10)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.one_python
@settings(max_examples=100, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 3), st.integers(0, 2**32 - 1), st.floats(-2, 2))
def test_numpy_and_torch_give_the_same_probabilities(
    name: str, trained: int, seed: int, size: float
) -> None:
    assert_same_probabilities(fitted(name, trained), drawn(50, D, seed=seed, scale=10**size))


def test_a_personal_model_gives_the_same_probabilities() -> None:
    for name in ("fedclip", "ridge"):
        shared, held = fitted(name, 1), features(20, 4, CLASSES)
        logits = methods.predict(shared, held.vectors, CLASSES)
        around = gate.gate_of(features(40, 3, CLASSES), held, logits)
        model = gate.beside(shared, fitted(name, 2), 0.25, around)
        assert_same_probabilities(model, drawn(50, D))


@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_rows_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, vectors = fitted(name, 1), drawn(50, D)
    whole = methods.predict(model, vectors, CLASSES)
    for rows in (1, 7, 50):
        monkeypatch.setattr("fedclip_edge.learning.method._ROWS", rows)
        found = methods.predict(model, vectors, CLASSES)
        np.testing.assert_allclose(found, whole, rtol=0, atol=5e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "zeroshot"])
def test_a_model_of_huge_numbers_gives_no_warning(name: str) -> None:
    """As in torch: a warning of numpy would be one line among the events of an agent."""
    model = fitted(name, 1)
    huge = {n: np.full_like(term, 3e38) for n, term in model.parameters.items()}
    found = methods.predict(replace(model, parameters=huge), drawn(5, D), CLASSES)
    assert found.shape == (5, C)


def test_memory_does_not_grow_with_the_number_of_pictures() -> None:
    """Beyond the logits themselves, of course."""
    model = fitted("clip-adapter", 1)
    peaks = []
    for count in (5_000, 50_000):
        vectors = np.ones((count, D), np.float32)
        tracemalloc.start()
        found = methods.predict(model, vectors, CLASSES)
        peaks.append(tracemalloc.get_traced_memory()[1] - found.nbytes)
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


# --- CLIP's logits -------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_logits_are_scaled_cosines(ops: Operations, scale: float) -> None:
    vectors = drawn(N, D, scale=10.0)
    result = computed(ops, vectors, CLASSES.vectors, scale)
    assert result.shape == (N, C)
    assert result.dtype == np.float32
    np.testing.assert_allclose(
        result, naive_logits(vectors, CLASSES.vectors, scale), rtol=1e-4, atol=1e-6 * scale
    )
    assert (np.abs(result) <= scale * (1 + 1e-5)).all()


@BOTH
@pytest.mark.parametrize("factor", [1e-3, 0.5, 10.0, 1e4])
def test_logits_do_not_see_a_features_norm(ops: Operations, factor: float) -> None:
    vectors = drawn(N, D)
    scaled = computed(ops, np.float32(factor) * vectors, CLASSES.vectors)
    np.testing.assert_allclose(scaled, computed(ops, vectors, CLASSES.vectors), rtol=0, atol=1e-3)


@BOTH
def test_a_feature_that_is_a_text_has_the_scale_as_its_logit(ops: Operations) -> None:
    result = computed(ops, 5 * CLASSES.vectors, CLASSES.vectors)
    np.testing.assert_allclose(result.diagonal(), np.full(C, 100), rtol=1e-5)


@BOTH
def test_a_feature_of_zeros_gives_no_nan(ops: Operations) -> None:
    assert np.abs(computed(ops, np.zeros((1, D), np.float32), CLASSES.vectors)).max() == 0


@BOTH
def test_no_pictures_give_no_rows(ops: Operations) -> None:
    assert computed(ops, np.zeros((0, D), np.float32), CLASSES.vectors).shape == (0, C)
