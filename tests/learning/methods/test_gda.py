"""gda: shrunk class means, one covariance and corrected text logits, for any split of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from averaged import shifted
from in_memory import class_texts, features, nothing

from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods, moments
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.methods import gda, zeroshot
from fedclip_edge.records import ClassTexts, Features, Model, Plan, Scalar

D = 16
CLASSES = class_texts(("ant", "bee", "cat", "dog"), D)
EVERY: dict[str, Scalar] = {"min_per_class": 1}
NOTHING = nothing(D)
Sides = tuple[Features, Features]


def some(data: Features, rows: Any) -> Features:
    return Features(data.vectors[rows], data.labels[rows], data.encoder_id)


def solved(
    sides: Sequence[Sides],
    options: dict[str, Scalar] | None = None,
    classes: ClassTexts = CLASSES,
) -> Model:
    plan = Plan("gda", {**EVERY, **(options or {})})
    start, total = methods.initial(plan, classes, classes.vectors.shape[1]), ExactSum(plan)
    for train, validation in sides:
        total.add(methods.fit(LocalTask(plan, start, train, validation, classes, 0)))
    return methods.combine(start, total, {})[0]


def bytes_of(model: Model) -> dict[str, bytes]:
    return {name: term.tobytes() for name, term in model.parameters.items()}


def right(model: Model, asked: Features, classes: ClassTexts = CLASSES) -> float:
    guesses = methods.predict(model, asked.vectors, classes).argmax(axis=1)
    return float(np.mean(guesses == asked.labels))


def from_pictures(x: Any, labels: Any, texts: Any, share: float) -> Any:
    """The head from the pictures themselves, class by class, as the module's docstring says it."""
    count = len(texts)
    mus = np.stack([x[labels == c].mean(axis=0) for c in range(count)])
    n = np.bincount(labels, minlength=count)
    t, m = texts.mean(axis=0), mus.mean(axis=0)
    s = np.sum((mus - m) * (texts - t)) / np.sum((texts - t) ** 2)
    r = m + max(0.0, s) * (texts - t)
    spread = sum(np.sum((x[labels == c] - mus[c]) ** 2) for c in range(count)) / (len(x) - count)
    around = np.mean(np.sum((mus - r) ** 2, axis=1)) - spread * np.mean(1 / n)
    k = np.clip(spread / max(around, 1e-9), 0.05, 50)
    shrunk = (n[:, None] * mus + k * r) / (n[:, None] + k)
    centred = x - shrunk[labels]
    scatter = centred.T @ centred * len(x) / (len(x) - count / (1 + k))
    ridge = np.trace(scatter) / (len(x) - 1) * np.eye(x.shape[1])
    w = shrunk @ np.linalg.inv(scatter + ridge) * (len(x) - 1 + x.shape[1])
    e, own = np.empty(count), np.empty(count)
    for c in range(count):
        logits = {o: 100 * (texts[c] - t) @ mus[o] for o in range(count)}
        own[c] = logits.pop(c)
        e[c] = np.mean(list(logits.values()))
    chance = np.mean(
        [
            np.var([100 * (texts[c] - t) @ mus[o] for o in range(count) if o != c], ddof=1)
            / (count - 1)
            for c in range(count)
        ]
    )
    chance *= (count - 1) / (count - 3)
    e = e.mean() + max(0.0, 1 - chance / e.var()) * (e - e.mean())
    slope = np.clip(np.polyfit(e, own, 1)[0] if np.ptp(e) > 1e-9 else 0.0, 0, 1)
    h = (e + own.mean() + slope * (e - e.mean())) / 2
    return 100 * (texts - t), -h, w, -np.sum(shrunk * w, axis=1) / 2, share


def test_the_head_is_the_one_of_the_docstring() -> None:
    train, asked = features(90, 1, CLASSES, noise=0.2), features(30, 2, CLASSES)
    x = train.vectors.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    texts = CLASSES.vectors.astype(np.float64)
    text, h, w, b, share = from_pictures(x, train.labels, texts, 0.3)
    f = asked.vectors.astype(np.float64)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    expected = f @ text.T + h + share * (f @ w.T + b)
    found = methods.predict(solved([(train, NOTHING)], {"share": 0.3}), asked.vectors, CLASSES)
    expected -= expected.mean(axis=1, keepdims=True)
    found -= found.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_it_learns_from_validation_pictures_as_from_training_pictures() -> None:
    train, validation = features(40, 1, CLASSES), features(20, 2, CLASSES)
    both = Features(
        np.concatenate([train.vectors, validation.vectors]),
        np.concatenate([train.labels, validation.labels]),
        train.encoder_id,
    )
    assert bytes_of(solved([(train, validation)])) == bytes_of(solved([(both, NOTHING)]))


def test_it_is_better_than_the_texts_where_there_is_something_to_learn() -> None:
    train, held, asked = shifted(200, 1), shifted(100, 2), shifted(400, 3)
    assert right(solved([(train, held)]), asked) > right(zeroshot.MODEL, asked) + 0.02


def test_texts_that_are_close_to_every_picture_lose_their_advantage() -> None:
    classes = class_texts(tuple(f"class {i}" for i in range(20)), 64)
    random = np.random.default_rng(0)
    common = random.standard_normal(64) / 8  # part of every picture, and of some texts
    texts = classes.vectors + random.uniform(0, 0.5, (20, 1)) * common
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    near = ClassTexts(classes.names, texts.astype(np.float32), 100.0, "unknown")

    def pictures(count: int, seed: int) -> Features:
        clean = features(count, seed, classes, noise=0.3)
        vectors = (clean.vectors + 10 * common).astype(np.float32)
        return Features(vectors, clean.labels, clean.encoder_id)

    asked = pictures(600, 2)
    model = solved([(pictures(100, 1), nothing(64))], {"share": 0.0}, near)
    assert right(model, asked, near) > right(zeroshot.MODEL, asked, near) + 0.03


@pytest.mark.parametrize("each", [1, 2, 3, 5])
def test_few_pictures_of_the_encoder_do_no_harm(each: int) -> None:
    asked = features(400, 7, CLASSES, noise=0.35)
    before = right(zeroshot.MODEL, asked)
    for seed in range(5):
        data = features(200, 50 + seed, CLASSES, noise=0.35)
        rows = np.concatenate([np.flatnonzero(data.labels == c)[:each] for c in range(4)])
        assert right(solved([(some(data, rows), NOTHING)]), asked) > before - 0.01


def test_a_negative_scatter_turns_no_class_round() -> None:
    sums = np.zeros((4, D))
    sums[np.arange(4), np.arange(4)] = 2.0
    hostile = moments.Moments(-9 * np.eye(D), sums, np.full(4, 4.0))
    head = gda.discriminant(hostile, CLASSES.vectors.astype(np.float64))
    scores = np.eye(D)[:4] @ head.weight.T + head.bias
    assert scores.argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_there_is_no_personal_model() -> None:
    with pytest.raises(ConfigError, match="gda learns from validation pictures too"):
        methods.with_defaults(Plan("gda", EVERY, personal_epochs=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": -1.0}, "share: expected 0 to 100"),
        ({"min_per_class": 0}, "min_per_class: expected 1"),
        ({"l2": 1.0}, "unknown key 'l2'"),
    ],
)
def test_what_is_wrong_with_an_option(options: dict[str, Scalar], message: str) -> None:
    with pytest.raises(ConfigError, match=f"gda options: {message}"):
        gda.METHOD.check_options(options)
