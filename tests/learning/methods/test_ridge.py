"""The ridge head: exact for any split of the pictures, in closed form, also with few pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import ENCODER, Fleet, class_texts, features, nothing
from opened import opened

from fedclip_edge import model_file
from fedclip_edge.config.fleet import RunRules
from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods, moments
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.methods import ridge, zeroshot
from fedclip_edge.learning.moments import F64
from fedclip_edge.records import F32, ClassTexts, Features, Model, Plan, Scalar, Update

D = 16
CLASSES = class_texts(("ant", "bee", "cat", "dog"), D)
EVERY: dict[str, Scalar] = {"min_per_class": 1}
PLAN = Plan("ridge", EVERY)
NOTHING = nothing(D)
Sides = tuple[Features, Features]


def some(data: Features, rows: Any) -> Features:
    return Features(data.vectors[rows], data.labels[rows], data.encoder_id)


def contributed(sides: Sequence[Sides], plan: Plan = PLAN) -> ExactSum:
    total = ExactSum(plan)
    for train, validation in sides:
        total.add(update_of(train, validation, plan))
    return total


def update_of(train: Features, validation: Features = NOTHING, plan: Plan = PLAN) -> Update:
    start = methods.initial(plan, CLASSES, D)
    return methods.fit(LocalTask(plan, start, train, validation, CLASSES, 0))


def solved(sides: Sequence[Sides], plan: Plan = PLAN) -> Model:
    return methods.combine(methods.initial(plan, CLASSES, D), contributed(sides, plan), {})[0]


def digest(model: Model) -> str:
    names = sorted(model.parameters)
    return hashlib.sha256(b"".join(model.parameters[name].tobytes() for name in names)).hexdigest()


def unit(data: Features) -> F32:
    norms = np.linalg.norm(data.vectors, axis=1, keepdims=True)
    return np.asarray(data.vectors / norms, np.float32)


# --- exact for any split of the pictures ---------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(1, 120), st.integers(1, 6), st.integers(0, 2**32 - 1), st.floats(-6, 6))
def test_any_partition_gives_the_bytes_of_one_device_with_all_pictures(
    count: int, devices: int, seed: int, size: float
) -> None:
    train, validation = features(count, seed, CLASSES), features(30, seed + 1, CLASSES)
    train = replace(train, vectors=train.vectors * np.float32(10**size))
    random = np.random.default_rng(seed)
    owner, judge = random.integers(0, devices, count), random.integers(0, devices, 30)
    sides = [(some(train, owner == i), some(validation, judge == i)) for i in range(devices)]
    apart, together = contributed(sides), contributed([(train, validation)])
    assert apart.sums.keys() == together.sums.keys()
    for name, numbers in together.sums.items():
        assert apart.sums[name].tobytes() == numbers.tobytes()
    assert digest(solved(sides)) == digest(solved([(train, validation)]))
    assert digest(solved(sides[::-1])) == digest(solved(sides))


def test_the_sums_are_those_of_whole_numbers() -> None:
    """Compared with Python's integers, which do not round."""
    data = features(9, 1, CLASSES)
    rows = [[round(float(v) * 2**15) for v in row] for row in unit(data).astype(np.float64)]
    sums = moments.send("train", data, len(CLASSES.names), 1)
    gram = np.zeros((D, D), object)
    for row in rows:
        gram += np.outer(np.array(row, object), np.array(row, object))
    received = moments.from_sums("train", sums)
    # A unit row in float32 and one in float64 may round to adjacent grid values.
    np.testing.assert_allclose(received.gram, gram.astype(float) * 2.0**-30, atol=1e-4)
    assert received.gram.tolist() == received.gram.T.tolist()
    assert received.counts.tolist() == np.bincount(data.labels, minlength=4).tolist()
    assert all(numbers.dtype == np.int64 for numbers in sums.values())


def test_a_total_of_as_many_pictures_as_a_plan_admits_is_within_bounds() -> None:
    one = Features(np.eye(1, D, dtype=np.float32), np.zeros(1, np.int64), ENCODER)
    update = update_of(one)
    assert max(int(np.abs(numbers).max()) for numbers in update.sums.values()) == 2**30
    ExactSum(PLAN).check(update)


def test_a_feature_of_zeros_is_left_out() -> None:
    blank = Features(np.zeros((6, D), np.float32), np.zeros(6, np.int64), ENCODER)
    sums = update_of(blank).sums
    assert not sums["train.gram"].any()
    assert sums["train.counts"].tolist() == [0, 0, 0, 0]


# --- the closed form -----------------------------------------------------------------------------


def plain(train: Features, l2: float, prior: float) -> F64:
    x = unit(train).astype(np.float64)
    y = np.eye(len(CLASSES.names))[train.labels]
    texts = CLASSES.vectors.astype(np.float64)
    right = x.T @ y + l2 * prior * texts.T
    return np.asarray(np.linalg.solve(x.T @ x + l2 * np.eye(D), right).T)


def error_of(weight: F64, data: Features) -> float:
    y = np.eye(len(CLASSES.names))[data.labels]
    return float(np.mean((unit(data) @ weight.T - y) ** 2))


@pytest.mark.parametrize(("l2", "prior"), [(0.3, 1.0), (5.0, 0.0), (100.0, 2.5)])
def test_it_is_the_ridge_solution_round_the_texts(l2: float, prior: float) -> None:
    train, validation = features(60, 1, CLASSES), features(40, 2, CLASSES)
    plan = Plan("ridge", {**EVERY, "l2": l2, "prior": prior})
    model = solved([(train, validation)], plan)
    np.testing.assert_allclose(model.parameters["weight"], plain(train, l2, prior), atol=2e-4)
    assert (float(model.parameters["l2"]), float(model.parameters["prior"])) == pytest.approx(
        (l2, prior)
    )
    error = error_of(plain(train, l2, prior), validation)
    assert float(model.parameters["scale"]) == pytest.approx(1 / error, rel=1e-2)


def test_lambda_and_tau_are_those_of_the_smallest_error_on_validation() -> None:
    train, validation = features(30, 1, CLASSES, noise=1.5), features(80, 2, CLASSES, noise=1.5)
    model = solved([(train, validation)])
    chosen = float(model.parameters["l2"]), float(model.parameters["prior"])
    error = error_of(plain(train, *chosen), validation)
    mean = np.mean(np.linalg.eigvalsh(unit(train).T @ unit(train)))
    others = [
        error_of(plain(train, float(mean * factor), prior), validation)
        for factor in np.logspace(-3, 3, 13)
        for prior in (0.0, 0.5, chosen[1], 1.0, 2.0)
    ]
    assert error <= min(others) * (1 + 1e-3)
    assert error < 0.97 * others[0]


def test_what_is_chosen_is_chosen_on_validation_alone() -> None:
    train = features(40, 1, CLASSES, noise=1.5)
    easy, hard = features(40, 2, CLASSES, noise=0.1), features(40, 3, CLASSES, noise=3.0)
    chosen = [float(solved([(train, side)]).parameters["l2"]) for side in (easy, hard)]
    assert chosen[0] != chosen[1]


def test_the_chosen_values_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    model = solved([(features(40, 1, CLASSES), features(20, 2, CLASSES))])
    said = capsys.readouterr()
    line = next(x for x in (said.out + said.err).splitlines() if "ridge_chosen" in x)
    assert "validation_pictures=20" in line
    assert f"l2={float(model.parameters['l2']):.3f}"[:5] in line


def test_probabilities_are_calibrated_where_the_noise_is_the_models() -> None:
    """The formula assumes scores with normal noise of variance 1 / scale; these have it."""
    random = np.random.default_rng(0)
    classes = ClassTexts(("a", "b"), np.eye(2, dtype=np.float32), 100.0, "")
    labels = random.integers(0, 2, 20_000)
    noise = 0.5
    scores = np.eye(2)[labels] + random.normal(size=(20_000, 2)) * noise
    spread = (scores / noise**2).astype(np.float64)
    p = np.exp(spread - spread.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    sure = p.max(axis=1)
    right = p.argmax(axis=1) == labels
    for low in (0.5, 0.6, 0.7, 0.8, 0.9):
        its = (sure >= low) & (sure < low + 0.1)
        assert right[its].mean() == pytest.approx(sure[its].mean(), abs=0.03)
    assert classes.names


# --- few pictures, or none -----------------------------------------------------------------------


def test_a_class_of_too_few_pictures_is_left_out_of_what_is_sent() -> None:
    data = features(60, 1, CLASSES)
    few = [*np.flatnonzero(data.labels == 0)[:4], *np.flatnonzero(data.labels > 0)]
    without = some(data, np.flatnonzero(data.labels > 0))
    sent, plan = update_of(some(data, few), plan=Plan("ridge")), Plan("ridge")
    assert sent.sums["train.counts"].tolist()[0] == 0
    assert not sent.sums["train.sums"][0].any()
    expected = update_of(without, plan=plan)
    for name, numbers in expected.sums.items():
        assert sent.sums[name].tobytes() == numbers.tobytes()
    assert sent.weight == len(without)
    enough = update_of(some(data, [*np.flatnonzero(data.labels == 0)[:5]]), plan=plan)
    assert enough.sums["train.counts"].tolist() == [5, 0, 0, 0]
    assert ridge.METHOD.check_options({}).min_per_class == 5


@pytest.mark.parametrize("sides", [[], [(NOTHING, NOTHING)], [(NOTHING, features(9, 1, CLASSES))]])
def test_without_a_training_picture_the_model_is_zero_shot(sides: list[Sides]) -> None:
    model, asked = solved(sides), features(20, 3, CLASSES)
    assert model.round == 1
    np.testing.assert_allclose(
        methods.predict(model, asked.vectors, CLASSES),
        methods.predict(zeroshot.MODEL, asked.vectors, CLASSES),
        atol=1e-3,
    )


@pytest.mark.parametrize("count", [1, 2])
def test_one_picture_or_two_make_a_model(count: int) -> None:
    data, asked = features(count, 1, CLASSES), features(40, 2, CLASSES, noise=0.3)
    model = solved([(data, NOTHING)])
    logits = methods.predict(model, asked.vectors, CLASSES)
    assert np.isfinite(logits).all()
    assert np.mean(logits.argmax(axis=1) == asked.labels) > 0.5
    # Without validation pictures: the mean eigenvalue, and tau = 1.
    assert float(model.parameters["l2"]) == pytest.approx(count / D, rel=1e-3)
    assert float(model.parameters["prior"]) == 1.0


def test_a_class_that_no_device_has_is_known_by_its_text() -> None:
    data, validation = features(80, 1, CLASSES), features(40, 2, CLASSES)
    seen = (some(data, data.labels < 3), some(validation, validation.labels < 3))
    asked = features(300, 3, CLASSES, noise=0.1)
    guesses = methods.predict(solved([seen]), asked.vectors, CLASSES).argmax(axis=1)
    assert np.mean(guesses[asked.labels < 3] == asked.labels[asked.labels < 3]) > 0.9


def test_sums_that_no_pictures_give_make_a_finite_model() -> None:
    """Hostile sums within the bounds, with a negative diagonal that no pictures can give."""
    total = contributed([(features(40, 1, CLASSES), features(20, 2, CLASSES))])
    hostile = {name: -np.abs(numbers) for name, numbers in update_of(NOTHING).sums.items()}
    hostile["train.gram"] = hostile["train.gram"] - 2**30 * 50
    hostile["validation.gram"] = hostile["validation.gram"] - 2**30 * 50
    total.add(Update("sum", 50, {}, hostile))
    model, _ = methods.combine(methods.initial(PLAN, CLASSES, D), total, {})
    assert all(np.isfinite(term).all() for term in model.parameters.values())


def test_a_negative_gram_is_taken_for_none() -> None:
    """With an eigenvalue of minus lambda the solution would be infinite."""
    plan = Plan("ridge", {**EVERY, "l2": 2.0, "prior": 1.0})
    total = ExactSum(plan)
    numbers = {name: np.zeros_like(n) for name, n in update_of(NOTHING, plan=plan).sums.items()}
    upper = np.zeros((D, D), np.int64)
    np.fill_diagonal(upper, -2 * 2**30)
    numbers["train.gram"] = upper[np.triu_indices(D)]
    numbers["train.counts"] = np.full(4, 2)
    total.add(Update("sum", 8, {}, numbers))
    model, _ = methods.combine(methods.initial(plan, CLASSES, D), total, {})
    np.testing.assert_allclose(model.parameters["weight"], CLASSES.vectors, atol=1e-5)


# --- in a run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_a_fleet_comes_to_the_head_of_all_its_pictures_in_one_round(
    tmp_path: Path, codec: str
) -> None:
    plan = Plan("ridge", EVERY, vote="off", codec_up=codec)  # type: ignore[arg-type]
    fleet = opened(Fleet(tmp_path, plan, RunRules(devices=3, quorum=1.0), CLASSES))
    sides = [features(20 + i, i, CLASSES) for i in range(3)]
    for i, train in enumerate(sides):
        fleet.start_device(f"cam-{i}", train, min_per_class=1)
    fleet.run()
    run = fleet.coordinator.run_state.run
    assert run.plan.rounds == 1
    found = model_file.read(model_file.path_of(fleet.journal.path, run.id)).model
    together = Features(
        np.concatenate([s.vectors for s in sides]), np.concatenate([s.labels for s in sides]), "e"
    )
    expected = solved([(replace(together, encoder_id=ENCODER), NOTHING)], plan)
    assert digest(found) == digest(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l2": 0.0}, "l2: expected above 0"),
        ({"l2": float("inf")}, "l2: expected above 0"),
        ({"l2": "auto"}, "l2: expected float, got str"),
        ({"prior": -1.0}, "prior: expected 0 to 100"),
        ({"min_per_class": 0}, "min_per_class: expected 1 or more"),
        ({"lr": 0.1}, "unknown key 'lr'"),
    ],
)
def test_what_is_wrong_with_an_option(options: dict[str, Scalar], message: str) -> None:
    with pytest.raises(ConfigError, match=f"ridge options: {message}"):
        ridge.METHOD.check_options(options)
