"""The feature attention module: torch's layers, in training and with the running statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from averaged import CLASSES, D, shifted
from in_memory import class_texts, features, nothing
from plain_attention import federated, module

from fedclip_edge.learning import feature_attention, methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.learning.operations import NUMPY
from fedclip_edge.records import Features, Model, Plan, Scalar

BOTH = pytest.mark.parametrize("name", ["faa-clip", "facmic"])
LEARNS: dict[str, Scalar] = {
    "loss": "cross-entropy",
    "lr": 1e-2,
    "weight_decay": 0.0,
    "epochs": 5,
}


@BOTH
def test_a_trained_gate_is_torchs_in_eval_mode(name: str) -> None:
    model = federated(Plan(name, LEARNS, rounds=3))[1]
    f = shifted(30, 8).vectors
    with torch.no_grad():
        expected = module(model).eval()(torch.tensor(f)).numpy() * f
    found = feature_attention.attend(NUMPY, model.parameters, f)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_it_begins_as_torchs_layers_do() -> None:
    dim = 64
    terms = methods.initial(Plan("faa-clip", seed=3), class_texts(dim=dim), dim).parameters
    layers = torch.nn.Sequential(
        torch.nn.Linear(dim, dim),
        torch.nn.BatchNorm1d(dim),
        torch.nn.LeakyReLU(),
        torch.nn.Linear(dim, dim),
    ).state_dict()
    assert {n: t.shape for n, t in terms.items()} == {
        n: tuple(t.shape) for n, t in layers.items() if n != "1.num_batches_tracked"
    }
    for name in ("1.weight", "1.bias", "1.running_mean", "1.running_var"):
        np.testing.assert_array_equal(terms[name], layers[name].numpy())
    for name in ("0.weight", "0.bias", "3.weight", "3.bias"):
        assert 0.9 / np.sqrt(dim) < np.abs(terms[name]).max() <= np.float32(1 / np.sqrt(dim))


def test_the_first_model_is_nearly_zero_shot() -> None:
    classes = class_texts(dim=512)
    vectors = features(50, 1, classes, noise=0.02).vectors
    first = methods.initial(Plan("faa-clip"), classes, 512)
    difference = np.abs(
        methods.predict(first, vectors, classes) - methods.predict(zeroshot.MODEL, vectors, classes)
    )
    assert 0.01 < difference.max() < 0.1 * classes.logit_scale


@BOTH
def test_no_picture_affects_another_ones_prediction(name: str) -> None:
    model = federated(Plan(name, rounds=1))[1]
    vectors = shifted(40, 3).vectors
    together = methods.predict(model, vectors, CLASSES)
    alone = np.concatenate([methods.predict(model, row[None], CLASSES) for row in vectors])
    np.testing.assert_allclose(together, alone, atol=1e-3)


@BOTH
def test_a_negative_variance_counts_as_zero(name: str) -> None:
    """A strategy with steps of its own, and a lossy codec, can take a small variance below zero."""
    model = federated(Plan(name, rounds=1))[1]
    spoilt = np.full(D, -0.01, np.float32)
    below = replace(model, parameters={**model.parameters, "1.running_var": spoilt})
    zero = replace(model, parameters={**model.parameters, "1.running_var": 0 * spoilt})
    vectors = shifted(10, 3).vectors
    found = methods.predict(below, vectors, CLASSES)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, methods.predict(zero, vectors, CLASSES))


@pytest.mark.one_python
@BOTH
def test_the_running_statistics_are_those_of_the_pictures(name: str) -> None:
    """After many batches they are the mean and the variance of the first layer's output."""
    data = shifted(300, 1)
    plan = Plan(name, {"lr": 1e-12, "weight_decay": 0.0, "epochs": 10})
    model = methods.initial(plan, CLASSES, D)
    update = methods.fit(LocalTask(plan, model, data, nothing(D), CLASSES, 0))
    terms = model.parameters
    hidden = data.vectors @ terms["0.weight"].T + terms["0.bias"]
    for stat, expected in (("1.running_mean", hidden.mean(0)), ("1.running_var", hidden.var(0))):
        sent = terms[stat] + update.delta[stat] / update.weight
        np.testing.assert_allclose(sent, expected, rtol=0.3, atol=0.3 * np.abs(expected).mean())


@BOTH
@pytest.mark.parametrize("alike", ["pictures", "zeros"])
def test_pictures_without_differences_are_no_error(name: str, alike: str) -> None:
    one = shifted(40, 1)
    rows = np.repeat(one.vectors[:1], 40, axis=0) * (0 if alike == "zeros" else 1)
    data = Features(rows, one.labels, one.encoder_id)
    plan = Plan(name)
    model = methods.initial(plan, CLASSES, D)
    update = methods.fit(LocalTask(plan, model, data, data, CLASSES, 0))
    assert all(np.isfinite(term).all() for term in update.delta.values())


def with_noise(count: int, seed: int) -> Features:
    """Pictures of which half of the values are mostly noise, which a gate can suppress."""
    data = features(count, seed, CLASSES, 0.1)
    noise = np.random.default_rng(seed).normal(size=(count, D)) * (np.arange(D) < D / 2)
    return replace(data, vectors=(data.vectors + 8 * noise).astype(np.float32))


@BOTH
def test_it_learns(name: str) -> None:
    plan, asked = Plan(name, LEARNS), with_noise(400, 77)
    model = methods.initial(plan, CLASSES, D)
    for number in range(4):
        total = ExactSum(plan)
        for device in range(2):
            task = LocalTask(plan, model, with_noise(100, device), nothing(D), CLASSES, number)
            total.add(methods.fit(task))
        model, _ = methods.combine(model, total, {})

    def right(its: Model) -> float:
        guesses = methods.predict(its, asked.vectors, CLASSES).argmax(axis=1)
        return float(np.mean(guesses == asked.labels))

    assert right(model) > right(zeroshot.MODEL) + 0.1
