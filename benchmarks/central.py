"""Logistic regression on the pictures of all devices together: what a fleet without privacy has.

It starts at the class texts, and the squared distance from them is penalised. The penalty with the
smallest cross-entropy on the validation pictures is chosen. The regression is then fitted again on
training and validation pictures together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedclip_edge.learning.evaluation import goodness
from fedclip_edge.records import F32
from fedclip_edge.simulating.pool import Pool
from fedclip_edge.simulating.splits import Device

PENALTIES = tuple(10.0**power for power in range(2, -5, -1))  # from stiff to loose
_STEPS = 200


def centralised(pool: Pool, devices: Sequence[Device], vectors: F32) -> F32:
    """Logits (N, C) of raw features (N, D), by a regression on the pictures of the devices."""
    train = np.concatenate([device.train for device in devices])
    validation = np.concatenate([device.validation for device in devices])
    chosen, likelihood = PENALTIES[0], -np.inf
    weights: torch.Tensor | None = None
    for penalty in PENALTIES if len(validation) else ():
        weights = _fit(pool, train, penalty, weights)
        logits = _logits(pool, weights, pool.vectors[validation])
        found = goodness(logits, pool.labels[validation])[1]
        if found > likelihood:
            chosen, likelihood = penalty, found
    weights = _fit(pool, np.concatenate([train, validation]), chosen, None)
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
