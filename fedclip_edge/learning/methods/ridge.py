"""The ridge head: least squares with shrinkage to the class texts, closed form, one round.

Hoerl & Kennard 1970, "Ridge Regression: Biased Estimation for Nonorthogonal Problems"
(Technometrics 12); here the solution shrinks towards the texts instead of zero. It needs one round
and gives the same result for any partition of the pictures, as in He et al. 2024, "AFL: A
Single-Round Analytic Approach for Federated Learning with Pre-trained Models", arXiv 2405.16240.

    W = (sum X^T X + lambda I)^-1 (sum X^T Y + lambda tau T^T)       X unit features, Y one-hot
    logits = f W / (|f| sigma^2)

Every device sends X^T X and X^T Y as exact integers (learning/moments.py), once for its training
and once for its validation pictures. A single device with all pictures would therefore get the same
result. lambda and tau minimise the squared error over the validation sums: lambda on a grid
relative to the mean eigenvalue of X^T X, tau in closed form, because W is linear in it. No test
pictures are used. Both are in the model (`l2`, `prior`) and in the log.

The scale: a score estimates one coordinate of the one-hot target. Assume that the target is the
scores plus normal noise of variance sigma^2. Then the probability of class c is the softmax of
score_c / sigma^2, by Bayes' rule over the C one-hot vectors; the squares of the scores cancel.
sigma^2 is the mean squared error of one coordinate on the validation sums.

The head of a class without pictures depends on its text only. Without any picture the model is
zero-shot CLIP. Without any validation picture lambda is the mean eigenvalue, tau is 1, and sigma^2
is the error on the training sums.

Options: `l2` (lambda) and `prior` (tau), which are chosen as above if not given, and
`min_per_class`. A side with fewer than `min_per_class` pictures of a class is left out of the sums,
because X^T Y of a single picture is the feature of that picture. An agent applies the higher of
this and its own floor before it calls `fit` (agent/withholding.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedclip_edge import log
from fedclip_edge.learning.kinds import Ballot, closed_form, mixes
from fedclip_edge.learning.moments import F64, Moments
from fedclip_edge.learning.operations import Array, Operations
from fedclip_edge.records import F32, Arrays, ClassTexts

_LAMBDAS = np.logspace(-3, 3, 37)  # times the mean eigenvalue of X^T X
_PRIOR_MAX = 100.0
VARIANCE_MIN = 1e-4  # lower limit: with almost no error, the scale would be huge


@dataclass(frozen=True)
class Options:
    """Options; the constructor raises ValueError with the option's name and range."""

    l2: float | None = None
    prior: float | None = None
    min_per_class: int = 5

    def __post_init__(self) -> None:
        if self.l2 is not None and not 0 < self.l2 < 1e12:
            raise ValueError(f"l2: expected above 0 and below 1e12, got {self.l2}")
        if self.prior is not None and not 0 <= self.prior <= _PRIOR_MAX:
            raise ValueError(f"prior: expected 0 to {_PRIOR_MAX:g}, got {self.prior}")
        if self.min_per_class < 1:
            raise ValueError(f"min_per_class: expected 1 or more, got {self.min_per_class}")


@dataclass(frozen=True, eq=False)
class Head:
    """A head, the settings that it was solved with, and its error."""

    weight: F64  # (C, D)
    l2: float  # lambda
    prior: float  # tau
    error: float  # mean squared error of one coordinate of the one-hot target


def initial_parameters(classes: ClassTexts, dim: int, seed: int, options: Options) -> Arrays:
    """Make the zero-shot head, with the class texts as `weight`; it ignores the options.

    The parameters are float32: `weight` (C, D) and the scalars `scale`, `l2` and `prior`.
    """
    return _parameters(classes.vectors, classes.logit_scale, 0.0, 1.0)


def solve(initial: Arrays, train: Moments, validation: Moments, options: Options) -> Arrays:
    """Solve for the head; `initial` gives the texts to shrink towards."""
    head = solve_head(train, validation, initial["weight"].astype(np.float64), options)
    variance = max(head.error, VARIANCE_MIN)
    log.event(
        "ridge_chosen",
        l2=head.l2,
        prior=head.prior,
        error=head.error,
        train_pictures=train.pictures,
        validation_pictures=validation.pictures,
    )
    return _parameters(head.weight, 1 / variance, head.l2, head.prior)


def heads(
    initial: Arrays, fitted: Moments, train: Moments, validation: Moments, options: Options
) -> Mapping[str, Arrays]:
    """Solve for the head on `fitted`, with the settings that are best on the validation sums."""
    texts = initial["weight"].astype(np.float64)
    chosen = solve_head(train, validation, texts, options)
    settings = Options(chosen.l2, chosen.prior)
    weight = solve_head(fitted, validation, texts, settings).weight
    variance = max(chosen.error, VARIANCE_MIN)
    return {"ridge": _parameters(weight, 1 / variance, chosen.l2, chosen.prior)}


def solve_head(train: Moments, validation: Moments, texts: F64, options: Options) -> Head:
    """Solve for the head with the smallest squared error on the validation sums.

    `texts` are float64 (C, D). Values of lambda and tau that the options give are kept. Without
    validation pictures lambda is the mean eigenvalue and tau is 1, unless the options give them,
    and the error is measured on the training sums.
    """
    held = validation if validation.pictures else train
    eigenvalues, basis = np.linalg.eigh(train.gram)  # (D,), (D, D)
    eigenvalues = np.maximum(eigenvalues, 0)  # negative if a device sends false sums
    pulled, text, gram, sums = (  # all in the eigenbasis: (D, C), (D, C), (D, D), (D, C)
        basis.T @ train.sums.T,
        basis.T @ texts.T,
        basis.T @ held.gram @ basis,
        basis.T @ held.sums.T,
    )
    mean = float(eigenvalues.mean())
    if options.l2 is not None:
        lambdas = np.array([options.l2])
    else:
        lambdas = mean * (_LAMBDAS if validation.pictures else np.ones(1))
    best = Head(texts, 0.0, 1.0, np.inf)
    for l2 in lambdas:
        shrunk = 1 / (eigenvalues + l2)[:, None]  # (D, 1)
        data, prior = shrunk * pulled, shrunk * l2 * text  # W = data + tau * prior
        tau = options.prior
        if tau is None:
            tau = _best_step(data, prior, gram, sums) if validation.pictures else 1.0
        weight = data + tau * prior  # (D, C)
        squared = np.sum(weight * (gram @ weight)) - 2 * np.sum(weight * sums) + held.pictures
        error = max(0.0, float(squared)) / (held.pictures * len(texts))
        if error < best.error:
            best = Head((basis @ weight).T, float(l2), float(tau), error)
    return best


def logits(
    ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
) -> Array:
    """Compute scaled scores (N, C) of features (N, D); `texts` and `scale` are unused."""
    return terms["scale"] * ops.normalize(features) @ terms["weight"].T


def _best_step(start: F64, direction: F64, gram: F64, sums: F64) -> float:
    """Minimise the squared error of start + tau * direction over tau from 0 to _PRIOR_MAX.

    `start`, `direction` and `sums` are (D, C), `gram` is (D, D).
    """
    moved = gram @ direction  # (D, C)
    curvature = float(np.sum(direction * moved))
    slope = float(np.sum(direction * sums) - np.sum(start * moved))
    return min(max(slope / curvature, 0.0), _PRIOR_MAX) if curvature > 0 else 1.0


def _parameters(weight: F64 | F32, scale: float, l2: float, prior: float) -> Arrays:
    values = {"weight": weight, "scale": scale, "l2": l2, "prior": prior}
    return {name: np.array(value, np.float32) for name, value in values.items()}


METHOD = closed_form(
    "ridge",
    Options,
    initial_parameters,
    logits,
    solve,
    ballot=Ballot(mixes("ridge"), heads, lambda initial: {"ridge": initial}),
)
