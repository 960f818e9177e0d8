"""Logistic regression on the pictures of all devices together: what a fleet without privacy has.

It starts at the class texts, and the squared distance from them is penalised. The penalty with the
smallest cross-entropy on the validation pictures is chosen. The regression is then fitted again on
training and validation pictures together.
"""

from __future__ import annotations

import numpy as np
import torch

from fedclip_edge.learning.evaluation import goodness
from fedclip_edge.records import F32
from fedclip_edge.simulating.pool import TEST, TRAIN, VALIDATION, Pool

PENALTIES = tuple(10.0**power for power in range(2, -5, -1))  # from stiff to loose
_STEPS = 200


def centralised(pool: Pool, vectors: F32) -> F32:
    """Logits (N, C) of raw features (N, D), by a regression on the pool."""
    sides = {side: pool.rows(side) for side in (TRAIN, VALIDATION)}
    chosen = PENALTIES[0]
    if len(sides[VALIDATION]):
        found = {}
        weights: torch.Tensor | None = None
        for penalty in PENALTIES:
            weights = _fit(pool, sides[TRAIN], penalty, weights)
            its = sides[VALIDATION]
            found[penalty] = goodness(_logits(pool, weights, pool.vectors[its]), pool.labels[its])
        chosen = max(PENALTIES, key=lambda one: found[one][1])
    weights = _fit(pool, np.flatnonzero(pool.sides != TEST), chosen, None)
    return _logits(pool, weights, vectors)


def _fit(pool: Pool, rows: np.ndarray, penalty: float, start: torch.Tensor | None) -> torch.Tensor:
    """Weights float64 (C, D) with the smallest sum of mean cross-entropy and penalty."""
    texts = torch.from_numpy(pool.classes.vectors.astype(np.float64))
    features = _unit(pool.vectors[rows])
    labels = torch.from_numpy(pool.labels[rows])
    weights = (texts if start is None else start).clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = pool.classes.logit_scale * features @ weights.T
        value = torch.nn.functional.cross_entropy(scores, labels)
        value = value + penalty * (weights - texts).square().sum()
        torch.autograd.backward(value)
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach()


def _logits(pool: Pool, weights: torch.Tensor, vectors: F32) -> F32:
    scores = pool.classes.logit_scale * _unit(vectors) @ weights.T
    return np.asarray(scores.numpy(), np.float32)


def _unit(vectors: F32) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(vectors.astype(np.float64)), dim=1)
