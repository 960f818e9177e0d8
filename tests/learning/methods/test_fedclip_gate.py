"""FedCLIP's gate, compared with its formula in float64 and with the reference's module."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from in_memory import class_texts
from numpy.typing import NDArray
from torch import nn

from fedclip_edge.learning.methods.fedclip import B1, B2, W1, W2, attend, logits
from fedclip_edge.learning.operations import NUMPY, Operations, cosine_logits
from fedclip_edge.learning.torch_operations import TORCH
from fedclip_edge.records import F32, Arrays

N, D = 7, 12
CLASSES = class_texts(("ant", "bee", "cat", "dog"), D)
BOTH = pytest.mark.parametrize("ops", [NUMPY, TORCH], ids=["numpy", "torch"])


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> F32:
    random = np.random.default_rng([seed, *shape])
    return (scale * random.normal(size=shape)).astype(np.float32)


def gate_terms() -> Arrays:
    return {
        W1: drawn(D, D, seed=1),
        B1: drawn(D, seed=1),
        W2: drawn(D, D, seed=2),
        B2: drawn(D, seed=2),
    }


def adapted(ops: Operations, features: F32, terms: Arrays | None = None) -> F32:
    its = gate_terms() if terms is None else terms
    if ops is NUMPY:
        return np.asarray(attend(ops, its, features))
    tensors = {name: torch.tensor(term) for name, term in its.items()}
    return np.asarray(attend(ops, tensors, torch.tensor(features)))


def naive_attend(features: F32) -> NDArray[np.float64]:
    w1, b1, w2, b2 = (gate_terms()[name].astype(np.float64) for name in (W1, B1, W2, B2))
    rows = []
    for f in features.astype(np.float64):
        scores = w2 @ np.tanh(w1 @ f + b1) + b2
        gate = np.exp(scores) / np.exp(scores).sum()
        rows.append(gate * f)
    return np.array(rows)


@BOTH
def test_attend_is_its_formula(ops: Operations) -> None:
    features = drawn(N, D, scale=3.0)
    found = adapted(ops, features)
    assert found.shape == (N, D)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, naive_attend(features), atol=1e-5)


@BOTH
def test_the_gate_is_the_references_module(ops: Operations) -> None:
    """The parameters load into the reference's nn.Sequential and give the same gate."""
    module = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D), nn.Softmax(dim=1))
    module.load_state_dict({n: torch.tensor(term) for n, term in gate_terms().items()}, strict=True)
    features = drawn(N, D)
    with torch.no_grad():
        expected = module(torch.tensor(features)).numpy() * features
    np.testing.assert_allclose(adapted(ops, features), expected, rtol=0, atol=1e-6)


@BOTH
def test_gate_rows_are_positive_and_sum_to_one(ops: Operations) -> None:
    features = drawn(N, D, scale=3.0) + np.float32(1e-3)
    gate = adapted(ops, features) / features
    assert (gate > 0).all()
    np.testing.assert_allclose(gate.sum(axis=1), np.ones(N), atol=1e-5, rtol=0)


@BOTH
def test_each_picture_is_gated_by_itself(ops: Operations) -> None:
    """The softmax is over the features, not over the batch."""
    features = drawn(N, D)
    alone = np.concatenate([adapted(ops, row[None]) for row in features])
    np.testing.assert_allclose(adapted(ops, features), alone, rtol=0, atol=1e-6)


@BOTH
def test_the_gate_sees_the_norm_of_the_raw_feature(ops: Operations) -> None:
    """Unlike the logits, the gate needs features that are not normalised."""
    features = drawn(N, D)
    once, tenfold = adapted(ops, features), adapted(ops, 10 * features)
    assert np.abs(10 * once - tenfold).max() > 0.1


@BOTH
def test_a_gate_of_zeros_is_uniform(ops: Operations) -> None:
    zeros = {name: np.zeros_like(term) for name, term in gate_terms().items()}
    features = drawn(N, D)
    np.testing.assert_allclose(adapted(ops, features, zeros), features / D, rtol=1e-6)


def test_the_logits_are_cosines_of_gated_features() -> None:
    features = drawn(N, D)
    found = logits(NUMPY, gate_terms(), features, CLASSES.vectors, 100.0)
    expected = cosine_logits(NUMPY, adapted(NUMPY, features), CLASSES.vectors, 100.0)
    np.testing.assert_array_equal(found, expected)


@BOTH
def test_a_feature_of_zeros_gives_no_nan(ops: Operations) -> None:
    assert np.abs(adapted(ops, np.zeros((1, D), np.float32))).max() == 0


@BOTH
def test_no_pictures_give_no_rows(ops: Operations) -> None:
    assert adapted(ops, np.zeros((0, D), np.float32)).shape == (0, D)
