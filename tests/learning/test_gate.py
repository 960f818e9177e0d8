"""The gate of a personal model: trusts it on the device's own pictures, and not on others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import class_texts, features, nothing
from trained_run import train as train_run
from trained_run import write_mixed

from fedclip_edge import model_file
from fedclip_edge.coordinator.model_lookup import find_model
from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting.classifier import export_classifier
from fedclip_edge.learning import gate, methods, mixture, unknown
from fedclip_edge.learning.evaluation import probabilities, top1
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.learning.operations import NUMPY
from fedclip_edge.learning.personal import personal
from fedclip_edge.learning.torch_operations import TORCH
from fedclip_edge.records import F32, Arrays, Features, Model, Plan
from fedclip_edge.vision.bundle import Bundle

D = 64  # several times the number of axes
CLASSES = class_texts(("ant", "bee", "cat", "dog"), D)
C = len(CLASSES.names)


@dataclass(frozen=True, eq=False)
class Sides:
    train: Features
    validation: Features


def only(data: Features, classes: tuple[int, ...]) -> Features:
    """The pictures of some classes: a device with label skew."""
    kept = np.isin(data.labels, classes)
    return replace(data, vectors=data.vectors[kept], labels=data.labels[kept])


def moved(data: Features, by: float) -> Features:
    """The same pictures as another camera sees them: all features are shifted in one direction."""
    direction = np.random.default_rng(5).normal(size=D)
    shift = 10 * by * direction / np.linalg.norm(direction)
    return replace(data, vectors=(data.vectors + shift).astype(np.float32))


def gate_of(train: Features, validation: Features) -> Arrays:
    """The gate of a device whose shared model is zero-shot CLIP."""
    shared = methods.predict(zeroshot.MODEL, validation.vectors, CLASSES)
    return gate.gate_of(train, validation, shared)


def trust(terms: Arrays, data: Features) -> F32:
    shared = methods.predict(zeroshot.MODEL, data.vectors, CLASSES)
    found = gate.trust(NUMPY, terms, data.vectors, shared)
    assert found.shape == (len(data), 1)
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1
    return np.asarray(found[:, 0])


def test_pictures_of_classes_that_the_device_does_not_have_are_not_its_own() -> None:
    train, held = (only(features(200, seed, CLASSES, 0.3), (0, 1)) for seed in (1, 2))
    around = gate_of(train, held)
    asked = features(200, 3, CLASSES, 0.3)
    assert np.median(trust(around, only(asked, (0, 1)))) > 0.6
    assert np.median(trust(around, only(asked, (2, 3)))) < 0.05


def test_pictures_that_look_different_are_not_its_own() -> None:
    """The same classes equally often, so only the look differs."""
    around = gate_of(features(100, 1, CLASSES, 0.1), features(50, 2, CLASSES, 0.1))
    asked = features(200, 3, CLASSES, 0.1)
    assert np.median(trust(around, asked)) > 0.4
    assert np.median(trust(around, moved(asked, 1.5))) < 0.05


def test_the_direction_in_which_a_device_varies_anyway_counts_less() -> None:
    """A device whose pictures vary in one direction (day and night, say) accepts both ends."""
    plain = features(100, 1, CLASSES, 0.1)
    night = moved(features(100, 2, CLASSES, 0.1), 2.0)
    both = Features(
        np.concatenate([plain.vectors, night.vectors]),
        np.concatenate([plain.labels, night.labels]),
        plain.encoder_id,
    )
    held = Features(both.vectors[::4], both.labels[::4], both.encoder_id)
    wide, narrow = (
        gate_of(both, held),
        gate_of(plain, features(50, 3, CLASSES, 0.1)),
    )
    asked = moved(features(100, 4, CLASSES, 0.1), 2.0)
    assert np.median(trust(wide, asked)) > 0.4
    assert np.median(trust(narrow, asked)) < 0.05


def test_without_evidence_the_odds_are_even() -> None:
    even = replace(features(4, 1, CLASSES), labels=np.arange(4))  # too few to know their distance
    np.testing.assert_allclose(
        trust(gate_of(even, nothing(D)), features(50, 3, CLASSES)), 0.5, atol=1e-6
    )
    assert trust(gate_of(nothing(D), nothing(D)), features(5, 3, CLASSES)) == (pytest.approx(0.5))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [0, 1, 2, 7, 30])
@pytest.mark.parametrize("held", [0, 1, 4, 5, 30])
def test_few_pictures_give_a_gate_of_the_same_shapes(count: int, held: int) -> None:
    around = gate_of(features(count, 1, CLASSES), features(held, 2, CLASSES))
    made = gate.beside(zeroshot.MODEL, zeroshot.MODEL, 1.0, around).parameters
    assert {name: term.shape for name, term in made.items()} == gate.shapes({}, {}, C, D)
    trust(around, features(50, 3, CLASSES, 3.0))


@pytest.mark.filterwarnings("error")
def test_pictures_that_are_all_the_same_are_no_special_case() -> None:
    same = Features(np.ones((20, D), np.float32), np.zeros(20, np.int64), "0" * 64)
    around = gate_of(same, same)
    assert trust(around, replace(same, vectors=same.vectors * 3)).min() > 0
    trust(around, features(50, 3, CLASSES))
    black = replace(same, vectors=np.zeros_like(same.vectors))  # features of zeros
    trust(around, black)
    trust(gate_of(black, black), same)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-2, 2))
def test_models_that_agree_need_no_gate(seed: int, size: float) -> None:
    around = gate_of(features(60, seed, CLASSES), features(20, seed + 1, CLASSES))
    random = np.random.default_rng(seed)
    logits = (10**size * random.normal(size=(9, C))).astype(np.float32)
    vectors = random.normal(size=(9, D)).astype(np.float32)
    found = gate.blended(NUMPY, around, vectors, logits, logits)
    np.testing.assert_allclose(probabilities(found), probabilities(logits), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-2, 3))
def test_numpy_and_torch_give_the_same_and_finite_logits(seed: int, size: float) -> None:
    around = gate_of(features(60, seed, CLASSES), features(20, seed + 1, CLASSES))
    random = np.random.default_rng(seed)
    shared, own = (10**size * random.normal(size=(2, 9, C))).astype(np.float32)
    vectors = (10 * random.normal(size=(9, D))).astype(np.float32)
    ours = gate.blended(NUMPY, around, vectors, shared, own)
    arrays = [torch.tensor(each) for each in (vectors, shared, own)]
    theirs = gate.blended(TORCH, {n: torch.tensor(t) for n, t in around.items()}, *arrays)
    assert ours.dtype == np.float32
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(
        probabilities(ours), torch.softmax(theirs.double(), 1).numpy(), atol=1e-5
    )


def test_a_blend_is_between_the_probabilities_of_both() -> None:
    around = gate_of(only(features(60, 1, CLASSES), (0, 1)), features(20, 2, CLASSES))
    asked = features(50, 3, CLASSES)
    random = np.random.default_rng(1)
    shared, own = random.normal(size=(2, 50, C)).astype(np.float32)
    found = probabilities(gate.blended(NUMPY, around, asked.vectors, shared, own))
    both = np.stack([probabilities(shared), probabilities(own)])
    assert (found >= both.min(axis=0) - 1e-6).all()
    assert (found <= both.max(axis=0) + 1e-6).all()


# --- in personal models --------------------------------------------------------------------------


def own_of(method: str, sides: Sides) -> tuple[Model, Model]:
    """A device's own model and the shared one, which is zero-shot CLIP."""
    learns = {"linear": {"lr": 0.02}, "fedot": {"lr": 0.02, "map_epochs": 20}}.get(method, {})
    epochs = {"linear": 20, "ridge": 1}.get(method, 0)
    plan = Plan(method, learns, rounds=1, personal_epochs=epochs, vote="off")
    shared = replace(methods.initial(plan, CLASSES, D), round=1)
    own = personal(plan, shared, sides, CLASSES, "cam")
    assert own is not None
    expected = methods.shapes_beside(own, plan, CLASSES, D)
    assert {name: term.shape for name, term in own.parameters.items()} == expected
    return own, shared


def right(model: Model, data: Features) -> float:
    return top1(methods.predict(model, data.vectors, CLASSES), data.labels)


def ungated(model: Model) -> Model:
    """The model as for a picture that is surely the device's own."""
    sure = {"gate/frequency": np.full(C, 1e9, np.float32), "gate/slope": np.zeros((), np.float32)}
    return replace(model, parameters={**model.parameters, **sure})


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("votes", [False, True])
def test_a_surely_own_picture_has_a_mix_of_the_logits(share: float, votes: bool) -> None:
    """The shared model may be a mixture, which ends a vote."""
    asked = features(9, 3, CLASSES).vectors
    shared, own = (methods.initial(Plan("fedclip", seed=seed), CLASSES, D) for seed in (1, 2))
    if votes:
        members = {"fedclip": shared.parameters}
        shared = mixture.mixed("fedclip", 1, members, {"zeroshot": 0.5, "fedclip": 0.7})
    one, other = (methods.predict(model, asked, CLASSES) for model in (shared, own))
    model = ungated(gate.beside(shared, own, share, gate_of(nothing(D), nothing(D))))
    found = probabilities(methods.predict(model, asked, CLASSES))
    np.testing.assert_allclose(found, probabilities((1 - share) * one + share * other), atol=1e-4)
    assert gate.shared_of(model).parameters.keys() == shared.parameters.keys()
    its = gate.own_of(model).parameters
    assert all(its[name] is term for name, term in own.parameters.items())


@pytest.mark.parametrize("method", ["linear", "ridge", "tip-adapter"])
def test_a_personal_model_stays_good_on_the_pictures_of_others(method: str) -> None:
    """A device that has two of four classes, and sees them from an unusual angle."""
    sizes = ((160, 1), (120, 2))
    own, shared = own_of(
        method, Sides(*(moved(only(features(n, s, CLASSES, 0.4), (0, 1)), 1.0) for n, s in sizes))
    )
    here = moved(only(features(400, 3, CLASSES, 0.4), (0, 1)), 1.0)
    there = only(features(400, 4, CLASSES, 0.4), (2, 3))
    assert gate.is_in(own)
    assert right(own, here) >= right(shared, here)
    assert right(ungated(own), here) > right(shared, here) + 0.03  # a personal model is of use
    assert right(ungated(own), there) < right(shared, there) - 0.03  # and this is its price
    assert right(own, there) > right(shared, there) - 0.01


@pytest.mark.parametrize("misled", [False, True])
@pytest.mark.parametrize("method", ["tip-adapter", "tofa", "fedot"])
def test_with_its_gate_it_is_never_worse_on_validation_than_the_shared_model(
    method: str, misled: bool
) -> None:
    """For methods that make a personal model for every shared one."""
    train, held = (only(features(n, n, CLASSES, 0.4), (0, 1)) for n in (60, 40))
    if misled:
        train = replace(train, labels=1 - train.labels)
    own, shared = own_of(method, Sides(moved(train, 1.0), moved(held, 1.0)))
    there = only(features(400, 4, CLASSES, 0.4), (2, 3))
    assert gate.is_in(own)
    assert right(own, moved(held, 1.0)) >= right(shared, moved(held, 1.0))
    assert right(own, there) > right(shared, there) - 0.01


@pytest.mark.one_python
@pytest.mark.parametrize("has_rule", [False, True])
@pytest.mark.parametrize("votes", [False, True])
def test_the_gate_goes_with_the_model_to_predict_and_the_classifier(
    votes: bool, has_rule: bool, random_bundle: Bundle, tmp_path: Path
) -> None:
    """`export_classifier` itself checks that its answers equal those of `predict`."""
    write_mixed(tmp_path / "pictures", random_bundle.classes.names)
    run = train_run(random_bundle, tmp_path / "pictures", method="linear")
    classes, dim = random_bundle.classes, random_bundle.manifest.dim
    shared, own = run.model, methods.initial(run.plan, classes, dim)
    if votes:
        members = {"linear": shared.parameters}
        shared = mixture.mixed("linear", 1, members, {"zeroshot": 0.5, "linear": 0.5})
    if has_rule:
        rule = unknown.Rule(0.1, 1.5)
        shared = replace(shared, parameters=unknown.with_rule(shared.parameters, rule))
    around = gate.gate_of(
        features(40, 1, classes),
        features(20, 2, classes),
        np.zeros((20, len(classes.names)), np.float32),
    )
    mixed = gate.beside(shared, own, 0.75, around)
    path = tmp_path / "personal.safetensors"
    model_file.write(path, replace(run, model=mixed))
    found = find_model(str(path), tmp_path / "journal.sqlite", random_bundle)
    assert gate.is_in(found.model)
    export_classifier(random_bundle, found, tmp_path / "classifier.onnx")
    for name in ("gate/axes", "own/weight"):
        cut = {**mixed.parameters, name: mixed.parameters[name][:2]}
        model_file.write(path, replace(run, model=replace(mixed, parameters=cut)))
        with pytest.raises(ConfigError, match="but linear with this bundle has"):
            find_model(str(path), tmp_path / "journal.sqlite", random_bundle)
