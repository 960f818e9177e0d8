"""TOFA: weighted Gaussian posteriors of fleet and device, and the surer of picture and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from averaged import CLASSES, D, shifted
from in_memory import Fleet, features, nothing
from opened import opened

from fedclip_edge import model_file
from fedclip_edge.config.fleet import RunRules
from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import gate, methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.evaluation import goodness, probabilities
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.methods import tofa, zeroshot
from fedclip_edge.protocol import wire
from fedclip_edge.records import ClassTexts, Features, Model, Plan, Scalar

EVERY: dict[str, Scalar] = {"min_per_class": 1}
NOTHING = nothing(D)


def solved(sides: Sequence[Features], classes: ClassTexts = CLASSES) -> Model:
    plan = Plan("tofa", EVERY)
    start, total = methods.initial(plan, classes, D), ExactSum(plan)
    for train in sides:
        total.add(methods.fit(LocalTask(plan, start, train, NOTHING, classes, 0)))
    return methods.combine(start, total, {})[0]


def own(
    shared: Model,
    train: Features,
    validation: Features = NOTHING,
    options: dict[str, Scalar] | None = None,
    classes: ClassTexts = CLASSES,
) -> Model:
    plan = Plan("tofa", {**EVERY, **(options or {})})
    made = methods.personal(LocalTask(plan, shared, train, validation, classes, 0))
    assert made is not None
    return made


def together(*parts: Features) -> Features:
    return Features(
        np.concatenate([part.vectors for part in parts]),
        np.concatenate([part.labels for part in parts]),
        parts[0].encoder_id,
    )


def unit(data: Features) -> Any:
    x = data.vectors.astype(np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def from_pictures(data: Features, weights: Any, asked: Features) -> Any:
    """The docstring's logits, from pictures with weights."""
    x, classes = unit(data), len(CLASSES.names)
    mus = np.stack(
        [
            np.average(x[data.labels == c], axis=0, weights=weights[data.labels == c])
            for c in range(classes)
        ]
    )
    s = sum(
        w * np.outer(a - mus[y], a - mus[y])
        for a, y, w in zip(x, data.labels, weights, strict=True)
    )
    n = weights.sum()
    p = (n - 1 + D) * np.linalg.inv(s + np.trace(s) / (n - 1) * np.eye(D))
    found = []
    for f in unit(asked):
        visual = np.array([f @ p @ mu - mu @ p @ mu / 2 for mu in mus])
        visual -= (
            np.mean([p @ mu for mu in mus], axis=0) @ f - np.mean([mu @ p @ mu for mu in mus]) / 2
        )
        textual = 100 * CLASSES.vectors.astype(np.float64) @ f
        sure, other = (
            np.exp(part - part.max()) / np.exp(part - part.max()).sum()
            for part in (visual, textual)
        )
        e = 1 / (1 + np.exp(-np.log(sure.max() / other.max())))  # as the paper writes it
        found.append(e * visual + (1 - e) * textual)
    return np.array(found)


def test_the_shared_logits_are_the_papers() -> None:
    parts = [shifted(30, 1), shifted(50, 2)]
    asked, every = shifted(20, 9), together(*parts)
    found = methods.predict(solved(parts), asked.vectors, CLASSES)
    np.testing.assert_allclose(
        found, from_pictures(every, np.ones(80), asked), rtol=2e-3, atol=0.05
    )


@pytest.mark.parametrize("alpha", [0.01, 0.3, 1.0])
def test_the_posterior_of_a_device_is_that_of_weighted_pictures(alpha: float) -> None:
    parts = [shifted(30, 1), shifted(50, 2)]
    asked, every = shifted(20, 9), together(*parts, parts[0])
    made = own(solved(parts), parts[0], options={"alpha": alpha})
    weights = np.array([alpha] * 80 + [1.0] * 30)
    found = methods.predict(made, asked.vectors, CLASSES)
    np.testing.assert_allclose(found, from_pictures(every, weights, asked), rtol=5e-3, atol=0.1)


def test_a_class_that_only_the_fleet_has_keeps_its_mean() -> None:
    """Its weight may be far below one picture."""
    elsewhere, here = shifted(80, 1), shifted(60, 2)
    known = here.labels > 0
    few = Features(here.vectors[known], here.labels[known], here.encoder_id)
    made = own(solved([elsewhere, few]), few, options={"alpha": 0.01})
    asked, every = shifted(20, 9), together(elsewhere, few, few)
    weights = np.array([0.01] * (80 + len(few)) + [1.0] * len(few))
    found = methods.predict(made, asked.vectors, CLASSES)
    np.testing.assert_allclose(found, from_pictures(every, weights, asked), rtol=5e-3, atol=0.1)


def test_any_partition_gives_the_same_bytes() -> None:
    parts = [shifted(30, 1), shifted(50, 2)]
    one, other = solved(parts), solved([together(*parts)])
    for name, term in one.parameters.items():
        assert term.tobytes() == other.parameters[name].tobytes()


def test_a_device_can_use_the_statistics_from_float16() -> None:
    """Models travel as float16 by default, and it ends at 65504."""
    many = replace(shifted(50, 2), labels=shifted(50, 2).labels)
    shared = solved([many, shifted(30, 1)])
    crowd = 4000.0  # as if every picture were there 4000 times
    shared = replace(
        shared,
        parameters={
            **shared.parameters,
            "pictures": shared.parameters["pictures"] * np.float32(crowd),
        },
    )
    plan = Plan("tofa", EVERY)
    payload = wire.pack_model(shared, "fp16")
    received = wire.unpack_model(payload, "fp16", methods.shapes(plan, CLASSES, D))
    asked, train = shifted(40, 9), shifted(30, 1)
    exact, rounded = (
        methods.predict(own(model, train, options={"alpha": 0.1}), asked.vectors, CLASSES)
        for model in (shared, received)
    )
    np.testing.assert_allclose(probabilities(rounded), probabilities(exact), atol=0.02)


def test_the_first_model_and_that_of_no_pictures_are_zero_shot() -> None:
    asked = features(20, 1, CLASSES)
    expected = methods.predict(zeroshot.MODEL, asked.vectors, CLASSES)
    one_each = Features(CLASSES.vectors, np.arange(4), NOTHING.encoder_id)  # no covariance
    for model in (methods.initial(Plan("tofa"), CLASSES, D), solved([NOTHING]), solved([one_each])):
        found = methods.predict(model, asked.vectors, CLASSES)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_on_validation_it_is_never_worse_than_the_shared_head(seed: int) -> None:
    train = features(12, seed, CLASSES, noise=2.0)
    if seed % 2:  # a device with wrong labels
        train = replace(train, labels=(train.labels + 1) % 4)
    held, shared = features(40, seed + 50, CLASSES), solved([shifted(40, 1)])
    scores = [
        goodness(methods.predict(model, held.vectors, CLASSES), held.labels)
        for model in (own(shared, train, held), shared)
    ]
    assert scores[0] >= scores[1]


def test_a_device_learns_what_is_its_own() -> None:
    """Its labels differ from those of the fleet, and its pictures are surer than the texts."""
    unsure = replace(CLASSES, logit_scale=2.0)
    train, held, asked = (
        replace(data, labels=(data.labels + 1) % 4)
        for data in (shifted(120, 1), shifted(60, 2), shifted(200, 3))
    )
    shared = solved([shifted(120, 5)], unsure)

    def right(model: Model) -> float:
        guesses = methods.predict(model, asked.vectors, unsure).argmax(axis=1)
        return float(np.mean(guesses == asked.labels))

    assert right(own(shared, train, held, classes=unsure)) > right(shared) + 0.3


@pytest.mark.parametrize("count", [0, 1])
def test_a_device_of_one_picture_or_none(count: int) -> None:
    for shared in (solved([shifted(40, 1)]), methods.initial(Plan("tofa"), CLASSES, D)):
        made = own(shared, features(count, 1, CLASSES))
        assert np.isfinite(methods.predict(made, shifted(20, 3).vectors, CLASSES)).all()


def test_in_a_run_each_device_keeps_its_own_head(tmp_path: Path) -> None:
    rules = RunRules(devices=2, quorum=1.0)
    fleet = opened(Fleet(tmp_path, Plan("tofa", EVERY), rules, classes=CLASSES))
    for i in range(2):
        fleet.start_device(f"cam-{i}", shifted(40, i), shifted(40, i + 9))
    fleet.run()
    run = fleet.coordinator.run_state.run.id
    last = {one.device: one.accuracy for one in fleet.journal.reports.all(run) if one.round == 1}
    for i in range(2):
        kept = model_file.read(tmp_path / f"cam-{i}" / "personal.safetensors").model
        assert gate.own_of(kept).parameters.keys() == {"weight", "bias"}
        asked = shifted(40, i + 9)
        guesses = methods.predict(kept, asked.vectors, CLASSES).argmax(axis=1)
        assert last[f"cam-{i}"]["personal"] == float(np.mean(guesses == asked.labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha: expected 0 to 1e3, got -1.0"),
        ({"min_per_class": 0}, "min_per_class: expected 1 or more"),
        ({"beta": 1.0}, "unknown key 'beta'"),
    ],
)
def test_what_is_wrong_with_an_option(options: dict[str, Scalar], message: str) -> None:
    with pytest.raises(ConfigError, match=f"tofa options: {message}"):
        tofa.METHOD.check_options(options)


def test_it_makes_personal_models_anyway() -> None:
    with pytest.raises(ConfigError, match="tofa already makes a personal model on each device"):
        methods.with_defaults(Plan("tofa", personal_epochs=1))
