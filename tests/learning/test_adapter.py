"""The gate and the logits, compared with their formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedclip_edge.learning import adapter
from fedclip_edge.learning.adapter import attend, logits

N, D, C = 7, 12, 4
F64 = NDArray[np.float64]


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.tensor(scale * np.random.default_rng([seed, *shape]).normal(size=shape)).float()


def gate_terms(seed: int = 1) -> dict[str, Tensor]:
    return {
        adapter.W1: drawn(D, D, seed=seed),
        adapter.B1: drawn(D, seed=seed),
        adapter.W2: drawn(D, D, seed=seed + 1),
        adapter.B2: drawn(D, seed=seed + 1),
    }


def naive_attend(terms: dict[str, Tensor], features: Tensor) -> F64:
    w1, b1, w2, b2 = (
        terms[name].numpy().astype(np.float64)
        for name in (adapter.W1, adapter.B1, adapter.W2, adapter.B2)
    )
    rows = []
    for f in features.numpy().astype(np.float64):
        scores = w2 @ np.tanh(w1 @ f + b1) + b2
        gate = np.exp(scores) / np.exp(scores).sum()
        rows.append(gate * f)
    return np.array(rows)


def naive_logits(features: Tensor, texts: Tensor, scale: float) -> F64:
    f, t = features.numpy().astype(np.float64), texts.numpy().astype(np.float64)
    return np.array([[scale * (x @ y) / np.sqrt(x @ x) for y in t] for x in f])


def unit_texts() -> Tensor:
    texts = drawn(C, D, seed=3)
    norms = texts.square().sum(dim=1, keepdim=True).sqrt()
    return texts / norms


def test_attend_is_its_formula() -> None:
    features = drawn(N, D, scale=3.0)
    adapted = attend(gate_terms(), features)
    assert adapted.shape == (N, D)
    assert adapted.dtype == torch.float32
    np.testing.assert_allclose(adapted.numpy(), naive_attend(gate_terms(), features), atol=1e-5)


def test_the_gate_is_the_references_module() -> None:
    """The parameters load into the reference's nn.Sequential and give the same gate."""
    module = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D), nn.Softmax(dim=1))
    module.load_state_dict(gate_terms(), strict=True)
    features = drawn(N, D)
    with torch.no_grad():
        expected = module(features) * features
    torch.testing.assert_close(attend(gate_terms(), features), expected)


def test_gate_rows_are_positive_and_sum_to_one() -> None:
    features = drawn(N, D, scale=3.0) + 1e-3
    gate = attend(gate_terms(), features) / features
    assert (gate > 0).all()
    torch.testing.assert_close(gate.sum(dim=1), torch.ones(N), atol=1e-5, rtol=0)


def test_each_picture_is_gated_by_itself() -> None:
    """The softmax is over the features, not over the batch."""
    features = drawn(N, D)
    whole = attend(gate_terms(), features)
    alone = torch.cat([attend(gate_terms(), row[None]) for row in features])
    torch.testing.assert_close(whole, alone)


def test_the_gate_sees_the_norm_of_the_raw_feature() -> None:
    """Unlike the logits, the gate needs features that are not normalised."""
    features = drawn(N, D)
    once, tenfold = attend(gate_terms(), features), attend(gate_terms(), 10 * features)
    assert (10 * once - tenfold).abs().max() > 0.1


def test_a_gate_of_zeros_changes_no_logit() -> None:
    zeros = {name: torch.zeros_like(term) for name, term in gate_terms().items()}
    features = drawn(N, D)
    torch.testing.assert_close(attend(zeros, features), features / D)
    torch.testing.assert_close(
        logits(attend(zeros, features), unit_texts(), 100.0), logits(features, unit_texts(), 100.0)
    )


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_logits_are_scaled_cosines(scale: float) -> None:
    features, texts = drawn(N, D, scale=10.0), unit_texts()
    result = logits(features, texts, scale)
    assert result.shape == (N, C)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), naive_logits(features, texts, scale), rtol=1e-4)
    assert (result.abs() <= scale * (1 + 1e-5)).all()


@pytest.mark.parametrize("factor", [1e-3, 0.5, 10.0, 1e4])
def test_logits_do_not_see_a_features_norm(factor: float) -> None:
    features, texts = drawn(N, D), unit_texts()
    torch.testing.assert_close(
        logits(factor * features, texts, 100.0), logits(features, texts, 100.0), rtol=0, atol=1e-3
    )


def test_a_feature_that_is_a_text_has_the_scale_as_its_logit() -> None:
    texts = unit_texts()
    result = logits(5 * texts, texts, 100.0)
    torch.testing.assert_close(result.diagonal(), torch.full((C,), 100.0))


def test_a_feature_of_zeros_gives_no_nan() -> None:
    features = torch.zeros(1, D)
    assert attend(gate_terms(), features).abs().max() == 0
    assert logits(features, unit_texts(), 100.0).abs().max() == 0


def test_no_pictures_give_no_rows() -> None:
    features = torch.zeros(0, D)
    assert logits(attend(gate_terms(), features), unit_texts(), 100.0).shape == (0, C)
