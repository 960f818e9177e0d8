"""Prototypes: the paper's head from class means and one covariance, for any split of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from averaged import shifted
from in_memory import class_texts, features, nothing

from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods, moments
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.evaluation import probabilities, top1
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.methods import prototypes, zeroshot
from fedclip_edge.records import F32, Features, Model, Plan, Scalar

D = 16
CLASSES = class_texts(("ant", "bee", "cat", "dog"), D)
EVERY: dict[str, Scalar] = {"min_per_class": 1}
NOTHING = nothing(D)
Sides = tuple[Features, Features]


def some(data: Features, rows: Any) -> Features:
    return Features(data.vectors[rows], data.labels[rows], data.encoder_id)


def solved(sides: Sequence[Sides], options: dict[str, Scalar] | None = None) -> Model:
    plan = Plan("prototypes", {**EVERY, **(options or {})})
    start, total = methods.initial(plan, CLASSES, D), ExactSum(plan)
    for train, validation in sides:
        total.add(methods.fit(LocalTask(plan, start, train, validation, CLASSES, 0)))
    return methods.combine(start, total, {})[0]


def bytes_of(model: Model) -> dict[str, bytes]:
    return {name: term.tobytes() for name, term in model.parameters.items()}


def unit(data: Features) -> F32:
    norms = np.linalg.norm(data.vectors, axis=1, keepdims=True)
    return np.asarray(data.vectors / norms, np.float32)


def published(train: Features, asked: Features, alpha: float) -> F32:
    """The logits as the paper's code computes them (mrflogs/ICLR24, main_few_shots.py)."""
    x, y = torch.tensor(unit(train)).double(), torch.tensor(train.labels)
    count = len(CLASSES.names)
    mus = torch.stack([x[y == i].mean(dim=0) for i in range(count)])
    centred = x - mus[y]
    cov = centred.T.cov()
    eye = torch.eye(D).double()
    inverse = D * torch.linalg.inv((len(x) - 1) * cov + cov.trace() * eye)
    w = mus @ inverse
    b = np.log(1 / count) - (w * mus).sum(dim=1) / 2
    f = torch.tensor(unit(asked)).double()
    scores = 100 * f @ torch.tensor(CLASSES.vectors).double().T + alpha * (f @ w.T + b)
    return np.asarray((scores - scores.mean(dim=1, keepdim=True)).numpy(), np.float32)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_without_validation_it_is_the_papers_head(alpha: float) -> None:
    train, asked = features(90, 1, CLASSES), features(30, 2, CLASSES)
    model = solved([(train, NOTHING)], {"alpha": alpha})
    logits = methods.predict(model, asked.vectors, CLASSES)
    centred = logits - logits.mean(axis=1, keepdims=True)
    expected = published(train, asked, alpha)
    np.testing.assert_allclose(centred, expected, atol=2e-3 * np.abs(expected).max())


def test_what_is_chosen_is_the_least_squared_error_on_validation() -> None:
    """Compared with a brute-force search over both shares on the pictures themselves."""
    train, held = shifted(60, 1), shifted(90, 2)
    model = solved([(train, held)])
    alpha = float(model.parameters["alpha"])
    y = np.eye(4)[held.labels] - 0.25

    def error(share: float) -> float:
        z = published(train, held, share).astype(np.float64)
        scale = np.sum(z * y) / np.sum(z * z)
        return float(np.mean((scale * z - y) ** 2))

    assert 0 < alpha < 1e4
    assert error(alpha) <= min(error(share) for share in np.logspace(-3, 3, 60)) * 1.001


def test_it_is_better_than_the_texts_where_there_is_something_to_learn() -> None:
    train, held, asked = shifted(200, 1), shifted(100, 2), shifted(400, 3)
    model = solved([(train, held)])

    def right(its: Model) -> float:
        guesses = methods.predict(its, asked.vectors, CLASSES).argmax(axis=1)
        return float(np.mean(guesses == asked.labels))

    assert right(model) > right(zeroshot.MODEL) + 0.02


def test_a_negative_scatter_turns_no_class_round() -> None:
    sums = np.zeros((4, D))
    sums[np.arange(4), np.arange(4)] = 2.0
    hostile = moments.Moments(-9 * np.eye(D), sums, np.full(4, 4.0))
    head = prototypes.discriminant(hostile, CLASSES.vectors.astype(np.float64), 1.0)
    scores = np.eye(D)[:4] @ head[:, :-1].T + head[:, -1]
    assert scores.argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_it_is_as_sure_as_it_is_right() -> None:
    train, held, asked = shifted(200, 1), shifted(200, 2), shifted(600, 3)
    logits = methods.predict(solved([(train, held)]), asked.vectors, CLASSES)
    sure = float(probabilities(logits).max(axis=1).mean())
    assert sure == pytest.approx(top1(logits, asked.labels), abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha: expected 0 to"),
        ({"shrinkage": 0.0}, "shrinkage: expected above 0"),
        ({"min_per_class": 0}, "min_per_class: expected 1"),
        ({"l2": 1.0}, "unknown key 'l2'"),
    ],
)
def test_what_is_wrong_with_an_option(options: dict[str, Scalar], message: str) -> None:
    with pytest.raises(ConfigError, match=f"prototypes options: {message}"):
        prototypes.METHOD.check_options(options)
