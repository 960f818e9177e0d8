"""The ridge head: least squares round the class texts, in closed form and in one round.

Hoerl & Kennard 1970, "Ridge Regression: Biased Estimation for Nonorthogonal Problems"
(Technometrics 12), shrunk towards the texts instead of zero. One round, and the same answer for any
partition: He et al. 2024, "AFL: A Single-Round Analytic Approach for Federated Learning with
Pre-trained Models", arXiv 2405.16240.

    W = (sum X^T X + lambda I)^-1 (sum X^T Y + lambda tau T^T)       X unit features, Y one-hot
    logits = f W / (|f| sigma^2)

Every device sends X^T X and X^T Y of its training pictures, and of its validation pictures apart,
as exact integers (learning/moments.py). So the answer is the one that a single device with all
pictures would get. lambda and tau make the squared error over the validation sums smallest:
lambda on a grid relative to the mean eigenvalue of X^T X, tau in closed form, because W is linear
in it. Nobody's test pictures are in either. Both are in the model (`l2`, `prior`) and in the log.

The scale: a score estimates a coordinate of the one-hot target. If the targets were the scores and
normal noise of variance sigma^2 around them, the probability of class c would be the softmax of
score_c / sigma^2 (Bayes' rule over the C one-hot vectors; the squares of the scores cancel).
sigma^2 is the mean squared error of one coordinate on the validation sums.

A class that no device has is known by its text alone. Without any picture the model is the
zero-shot one; without any validation picture lambda is the mean eigenvalue, tau 1, and sigma^2 the
error on the training sums.

Options: `l2` (lambda) and `prior` (tau), chosen where not given; `min_per_class`: nothing of a class
with fewer pictures on a device is sent by it, because X^T Y of one picture is that picture's feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedclip_edge import log
from fedclip_edge.config import read_table
from fedclip_edge.learning import moments
from fedclip_edge.learning.method import NO_OPTIONS, NO_TERMS, Traits
from fedclip_edge.learning.moments import F64, Moments
from fedclip_edge.learning.strategy import State, Total
from fedclip_edge.records import (
    F32,
    Arrays,
    ClassTexts,
    Features,
    Layout,
    Model,
    Plan,
    Scalar,
    Update,
)

if TYPE_CHECKING:
    from torch import Tensor

TRAITS = Traits(rounds=1, one_round=True)
_LAMBDAS = np.logspace(-3, 3, 37)  # times the mean eigenvalue of X^T X
_PRIOR_MAX = 100.0
_VARIANCE_MIN = 1e-4  # of pictures that are all told without error


@dataclass(frozen=True)
class Options:
    """Checked when made; raises ValueError naming the option and its range."""

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
    """A solution, and what it was chosen by."""

    weight: F64  # (C, D)
    l2: float
    prior: float
    error: float  # squared, of one coordinate of the one-hot target


def check_options(options: Mapping[str, Scalar]) -> Options:
    """Raises ConfigError for an unknown option or a value out of range."""
    return read_table(Options, options, "ridge options")


def initial(
    classes: ClassTexts, dim: int, seed: int, options: Mapping[str, Scalar] = NO_OPTIONS
) -> Model:
    """The zero-shot head: the class texts."""
    return _model(0, classes.vectors, classes.logit_scale, 0.0, 1.0)


def layout(model: Model) -> Layout:
    """A head; what is sent are integer sums."""
    classes, dim = model.parameters["weight"].shape
    shapes = {name: term.shape for name, term in model.parameters.items()}
    return Layout(shapes, {}, moments.sum_shapes(classes, dim))


def fit(
    model: Model,
    features: Features,
    validation: Features,
    classes: ClassTexts,
    plan: Plan,
    state: State,
    seed: int,
    drift: Arrays = NO_TERMS,
) -> tuple[Update, State]:
    """The sums of both sides; the weight counts the pictures in them."""
    least = check_options(plan.options).min_per_class
    return moments.update(features, validation, len(classes.names), least), state


def combine(model: Model, total: Total, state: State) -> tuple[Model, State]:
    """The head that solves the sums, round the texts that the model began with."""
    options = check_options(total.plan.options)
    if not total.sums or not total.sums["train.counts"].any():
        log.event("ridge_without_pictures", model="zero-shot")
        zero_shot = model.parameters
        return Model(model.method, model.round + 1, zero_shot), state
    train, validation = moments.received(total.sums)
    head = solve(train, validation, model.parameters["weight"].astype(np.float64), options)
    variance = max(head.error, _VARIANCE_MIN)
    log.event(
        "ridge_chosen",
        l2=head.l2,
        prior=head.prior,
        error=head.error,
        train_pictures=train.pictures,
        validation_pictures=validation.pictures,
    )
    return _model(model.round + 1, head.weight, 1 / variance, head.l2, head.prior), state


def solve(train: Moments, validation: Moments, texts: F64, options: Options) -> Head:
    """The head of the smallest squared error on the validation sums, as far as options leave it."""
    held = validation if validation.pictures else train
    eigenvalues, basis = np.linalg.eigh(train.gram)  # (D,), (D, D)
    eigenvalues = np.maximum(eigenvalues, 0)  # a device may send what no pictures give
    pulled, text, gram, sums = (  # all in the basis: (D, C), (D, C), (D, D), (D, C)
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


def logits(terms: Mapping[str, Tensor], features: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Scaled scores (N, C) of unit features; the texts and their scale are in the head."""
    from torch.nn.functional import normalize

    return terms["scale"] * normalize(features, dim=1) @ terms["weight"].T


def _best_step(start: F64, direction: F64, gram: F64, sums: F64) -> float:
    """Tau >= 0 of the smallest squared error of start + tau * direction."""
    moved = gram @ direction
    curvature = float(np.sum(direction * moved))
    slope = float(np.sum(direction * sums) - np.sum(start * moved))
    return min(max(slope / curvature, 0.0), _PRIOR_MAX) if curvature > 0 else 1.0


def _model(round: int, weight: F64 | F32, scale: float, l2: float, prior: float) -> Model:
    values = {"weight": weight, "scale": scale, "l2": l2, "prior": prior}
    terms = {name: np.array(value, np.float32) for name, value in values.items()}
    return Model("ridge", round, terms)
