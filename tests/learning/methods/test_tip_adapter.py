"""Tip-Adapter: the paper's formula, local data only, and the use of its result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from averaged import shifted
from in_memory import Fleet, class_texts, features, nothing
from opened import opened

from fedclip_edge import model_file
from fedclip_edge.config.fleet import RunRules
from fedclip_edge.coordinator.model_lookup import find_model
from fedclip_edge.errors import ConfigError, DataError
from fedclip_edge.learning import gate, methods
from fedclip_edge.learning.evaluation import top1
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.methods import tip_adapter, zeroshot
from fedclip_edge.model_file import TrainedModel
from fedclip_edge.records import Features, Model, Plan, Scalar
from fedclip_edge.vision.bundle import Bundle

D = 16
CLASSES = class_texts(("ant", "bee", "cat", "dog"), D)
NOTHING = nothing(D)
SHARED = tip_adapter.METHOD.initial(CLASSES, D, 0)


def own(
    train: Features, validation: Features = NOTHING, options: dict[str, Scalar] | None = None
) -> Model:
    plan = Plan("tip-adapter", options or {})
    made = methods.personal(LocalTask(plan, SHARED, train, validation, CLASSES, 0))
    assert made is not None
    return made


def test_the_logits_are_the_papers() -> None:
    train, asked = features(30, 1, CLASSES), features(9, 2, CLASSES)
    model = own(train, options={"alpha": 2.0, "beta": 4.0})
    found = methods.predict(model, asked.vectors, CLASSES)
    k = train.vectors.astype(np.float64)
    k /= np.linalg.norm(k, axis=1, keepdims=True)
    for i, vector in enumerate(asked.vectors.astype(np.float64)):
        f = vector / np.linalg.norm(vector)
        expected = 100 * CLASSES.vectors @ f
        for key, label in zip(k, train.labels, strict=True):
            expected[label] += 2 * np.exp(-4 * (1 - f @ key))
        np.testing.assert_allclose(found[i], expected, atol=2e-3)


def test_an_empty_update_is_all_that_leaves_the_device() -> None:
    plan, data = Plan("tip-adapter"), features(30, 1, CLASSES)
    update = methods.fit(LocalTask(plan, SHARED, data, NOTHING, CLASSES, 0))
    assert (dict(update.delta), dict(update.sums), update.weight) == ({}, {}, 1)
    assert methods.plan_layout(plan, CLASSES, D).parameters == {}


def test_the_shared_model_is_zero_shot() -> None:
    data = features(20, 1, CLASSES)
    np.testing.assert_array_equal(
        methods.predict(SHARED, data.vectors, CLASSES),
        methods.predict(zeroshot.MODEL, data.vectors, CLASSES),
    )


@pytest.mark.parametrize("seed", range(8))
def test_on_validation_it_is_never_worse_than_zero_shot(seed: int) -> None:
    train = features(12, seed, CLASSES, noise=2.0)
    if seed % 2:  # a device with wrong labels
        train = replace(train, labels=(train.labels + 1) % 4)
    validation = features(40, seed + 50, CLASSES)
    scores = [
        top1(methods.predict(model, validation.vectors, CLASSES), validation.labels)
        for model in (own(train, validation), zeroshot.MODEL)
    ]
    assert scores[0] >= scores[1]


def test_a_cache_that_misleads_is_not_listened_to() -> None:
    train = features(60, 1, CLASSES, noise=0.2)
    misled = replace(train, labels=(train.labels + 1) % 4)
    assert float(own(misled, features(40, 2, CLASSES)).parameters["alpha"]) == 0
    assert float(own(shifted(60, 1), shifted(40, 2)).parameters["alpha"]) > 0


def test_alpha_and_beta_are_the_best_of_the_grid() -> None:
    train, validation = features(60, 1, CLASSES, noise=1.5), features(60, 2, CLASSES, noise=1.5)

    def right(model: Model) -> float:
        return top1(methods.predict(model, validation.vectors, CLASSES), validation.labels)

    best = right(own(train, validation))
    assert best > right(zeroshot.MODEL)
    for alpha in (0.1, 1.0, 10.0):
        for beta in (1.0, 5.5, 20.0):
            assert right(own(train, options={"alpha": alpha, "beta": beta})) <= best


def test_without_validation_they_are_the_papers() -> None:
    terms = own(features(5, 1, CLASSES)).parameters
    assert (float(terms["alpha"]), float(terms["beta"])) == (1.0, 5.5)


@pytest.mark.parametrize("count", [0, 1])
def test_a_device_of_one_picture_or_none(count: int) -> None:
    asked = features(20, 3, CLASSES)
    logits = methods.predict(own(features(count, 1, CLASSES)), asked.vectors, CLASSES)
    assert logits.shape == (20, 4)
    assert np.isfinite(logits).all()


def test_a_label_outside_the_class_list_is_refused() -> None:
    data = features(5, 1, CLASSES)
    with pytest.raises(DataError, match="training features have the label 9"):
        own(replace(data, labels=np.full(5, 9, np.int64)))


def test_other_methods_have_no_model_of_the_devices_own() -> None:
    data = features(5, 1, CLASSES)
    assert methods.personal(LocalTask(Plan("fedclip"), SHARED, data, data, CLASSES, 0)) is None


def test_in_a_run_each_device_keeps_its_own_model(tmp_path: Path) -> None:
    rules = RunRules(devices=2, quorum=1.0)
    fleet = opened(Fleet(tmp_path, Plan("tip-adapter"), rules, classes=CLASSES))
    for i in range(2):
        fleet.start_device(f"cam-{i}", features(40, i, CLASSES), features(40, i + 9, CLASSES))
    fleet.run()
    reports = fleet.journal.reports.all(fleet.coordinator.run_state.run.id)
    last = {report.device: report.accuracy for report in reports if report.round == 1}
    for i in range(2):
        found = model_file.read(tmp_path / f"cam-{i}" / "personal.safetensors")
        expected = own(features(40, i, CLASSES))
        assert found.run == f"own-cam-{i}"
        for name, term in expected.parameters.items():
            np.testing.assert_array_equal(gate.own_of(found.model).parameters[name], term)
        asked = features(40, i + 9, CLASSES)
        accuracy = top1(methods.predict(found.model, asked.vectors, CLASSES), asked.labels)
        assert last[f"cam-{i}"]["personal"] == accuracy
        assert last[f"cam-{i}"]["federated"] == last[f"cam-{i}"]["zero_shot"]
    shared = model_file.read(
        model_file.path_of(fleet.journal.path, fleet.coordinator.run_state.run.id)
    )
    assert dict(shared.model.parameters) == {}


def written(bundle: Bundle, path: Path, model: Model) -> str:
    plan = Plan("tip-adapter", rounds=1)
    encoder_id, digest = bundle.manifest.encoder_id, bundle.classes.digest
    model_file.write(path, TrainedModel(model, "run-0", plan, encoder_id, digest))
    return str(path)


def test_the_shared_model_cannot_be_asked_for(random_bundle: Bundle, tmp_path: Path) -> None:
    path = written(random_bundle, tmp_path / "a.safetensors", SHARED)
    with pytest.raises(ConfigError, match=r"zero-shot CLIP; give the personal\.safetensors"):
        find_model(path, tmp_path / "journal.sqlite", random_bundle)


def test_a_devices_own_model_can(random_bundle: Bundle, tmp_path: Path) -> None:
    classes, dim = random_bundle.classes, random_bundle.manifest.dim
    data = features(7, 1, classes)
    plan = Plan("tip-adapter")
    model = methods.personal(LocalTask(plan, SHARED, data, features(0, 1, classes), classes, 0))
    assert model is not None
    path = written(random_bundle, tmp_path / "a.safetensors", model)
    found = find_model(path, tmp_path / "journal.sqlite", random_bundle)
    assert found.model.parameters["keys"].shape == (7, dim)
    wrong = replace(model, parameters={**model.parameters, "keys": model.parameters["keys"][:3]})
    path = written(random_bundle, tmp_path / "b.safetensors", wrong)
    with pytest.raises(
        ConfigError, match=r"has the parameters .*but tip-adapter with this bundle has"
    ):
        find_model(path, tmp_path / "journal.sqlite", random_bundle)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"alpha": -1.0}, "alpha: expected 0 to"), ({"shots": 16}, "unknown key 'shots'")],
)
def test_what_is_wrong_with_an_option(options: dict[str, Scalar], message: str) -> None:
    with pytest.raises(ConfigError, match=f"tip-adapter options: {message}"):
        tip_adapter.METHOD.check_options(options)
