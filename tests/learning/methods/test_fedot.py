"""FEDOT: an averaged classifier, and an orthogonal map that stays on the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from averaged import CLASSES, SIZES, D, federated, shifted
from in_memory import Fleet, features, nothing
from opened import opened
from torch import Tensor, nn

from fedclip_edge import model_file
from fedclip_edge.config.fleet import RunRules
from fedclip_edge.coordinator.model_lookup import find_model
from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import gate, methods
from fedclip_edge.learning.evaluation import goodness
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.methods import fedot, zeroshot
from fedclip_edge.model_file import TrainedModel
from fedclip_edge.records import Features, Model, Plan, Scalar
from fedclip_edge.vision.bundle import Bundle


def own(
    train: Features,
    validation: Features,
    options: dict[str, Scalar] | None = None,
    shared: Model | None = None,
) -> Model:
    plan = Plan("fedot", options or {})
    start = methods.initial(plan, CLASSES, D) if shared is None else shared
    made = methods.personal(LocalTask(plan, start, train, validation, CLASSES, 0))
    assert made is not None
    return made


def turned(data: Features, seed: int = 0) -> Features:
    """The same pictures, with features turned by one random rotation."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))
    return replace(data, vectors=(data.vectors @ q).astype(np.float32))


# --- the formulas --------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "blocks"), [(16, 1), (16, 4), (10, 4), (7, 7), (5, 3)])
def test_the_map_is_the_papers_and_orthogonal_in_every_block(dim: int, blocks: int) -> None:
    size = -(-dim // blocks)
    free = torch.tensor(np.random.default_rng(1).normal(size=(blocks, size, size)))
    found = fedot.orthogonal(free.float(), dim).double()
    torch.testing.assert_close(found @ found.T, torch.eye(dim).double(), atol=1e-5, rtol=0)
    for k in range(blocks):
        rows = slice(k * size, min((k + 1) * size, dim))
        count = max(0, rows.stop - rows.start)
        r = ((free[k] - free[k].T) / 2)[:count, :count]
        one = torch.eye(count).double()
        expected = (one + r) @ torch.linalg.inv(one - r)
        torch.testing.assert_close(found[rows, rows], expected, atol=1e-5, rtol=0)
        found[rows, rows] = 0
    assert not found.any()


def plain_loss(w: Tensor, a: Tensor, f: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of the paper's classifier; `a` (K, S, S) has blocks that fill D."""
    one = torch.eye(a.shape[1])
    blocks = [(one + r) @ torch.linalg.inv(one - r) for r in (a - a.transpose(1, 2)) / 2]
    parts = f.reshape(len(f), *a.shape[:2])  # (B, K, S)
    mapped = torch.cat([parts[:, k] @ q.t() for k, q in enumerate(blocks)], dim=1)
    scores = 100 * (mapped / f.norm(dim=1, keepdim=True)) @ w.t()
    return nn.functional.cross_entropy(scores, labels)


def plain_training(terms: list[Tensor], w: Tensor, a: Tensor, size: int, seed: int, n: int) -> None:
    """Train `terms`, one or both of `w` and `a`, for `n` epochs with torch.optim.Adam."""
    device = seed % 100
    data, random = shifted(size, device), np.random.default_rng(seed)
    optimizer = torch.optim.Adam(terms, lr=1e-3, betas=(0.9, 0.999), eps=1e-6)
    for _ in range(n):
        order = random.permutation(size)
        for first in range(0, size - 1, 32):
            batch = order[first : first + 32]
            f, labels = torch.tensor(data.vectors[batch]), torch.tensor(data.labels[batch])
            optimizer.zero_grad()
            plain_loss(w, a, f, labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def test_it_is_plain_pytorch() -> None:
    options: dict[str, Scalar] = {"blocks": 4, "map_epochs": 2}
    _, last = federated("fedot", options, 2)
    server = torch.tensor(CLASSES.vectors)
    for number in range(2):
        results = []
        for device, size in enumerate(SIZES):
            seed = 100 * number + device
            w, a = server.clone().requires_grad_(), torch.zeros(4, D // 4, D // 4).requires_grad_()
            plain_training([a], w.detach(), a, size, seed, 2)
            plain_training([a, w], w, a, size, seed, 1)
            results.append(w.detach())
        server = torch.stack(results).mean(dim=0)
    assert float((server - torch.tensor(CLASSES.vectors)).abs().max()) > 2e-3
    np.testing.assert_allclose(last.parameters["weight"], server.numpy(), rtol=0, atol=1e-4)


def test_it_begins_as_zero_shot() -> None:
    data = features(20, 1, CLASSES)
    np.testing.assert_array_equal(
        methods.predict(fedot.METHOD.initial(CLASSES, D, 0), data.vectors, CLASSES),
        methods.predict(zeroshot.MODEL, data.vectors, CLASSES),
    )


# --- the device's own model ----------------------------------------------------------------------


def right(model: Model, data: Features) -> float:
    guesses = methods.predict(model, data.vectors, CLASSES).argmax(axis=1)
    return float(np.mean(guesses == data.labels))


def test_a_device_whose_features_are_turned_turns_them_back() -> None:
    train, held, asked = (
        turned(features(n, s, CLASSES, 0.2)) for n, s in ((90, 1), (40, 2), (99, 3))
    )
    made = own(train, held, {"blocks": 1, "map_epochs": 60, "lr": 0.01})
    assert right(made, asked) > right(zeroshot.MODEL, asked) + 0.2


@pytest.mark.parametrize("seed", range(4))
def test_on_validation_it_is_never_worse_than_the_shared_model(seed: int) -> None:
    train = features(20, seed, CLASSES, noise=2.0)
    if seed % 2:  # a device with wrong labels
        train = replace(train, labels=(train.labels + 1) % 4)
    held = features(40, seed + 50, CLASSES)
    shared = methods.initial(Plan("fedot"), CLASSES, D)
    scores = [
        goodness(methods.predict(model, held.vectors, CLASSES), held.labels)
        for model in (own(train, held, {"lr": 0.05}), shared)
    ]
    assert scores[0] >= scores[1]


def test_the_map_is_never_sent_and_the_same_bytes_come_again() -> None:
    plan, data = Plan("fedot"), shifted(60, 1)
    task = LocalTask(plan, methods.initial(plan, CLASSES, D), data, nothing(D), CLASSES, 7)
    one, other = methods.fit(task), methods.fit(task)
    assert one.delta.keys() == {"weight"}
    assert one.delta["weight"].tobytes() == other.delta["weight"].tobytes()
    assert methods.plan_layout(plan, CLASSES, D).parameters == {"weight": (4, D)}


@pytest.mark.one_python
def test_in_a_run_each_device_keeps_its_own_map(tmp_path: Path) -> None:
    plan = Plan("fedot", {"lr": 0.01}, rounds=2)
    fleet = opened(Fleet(tmp_path, plan, RunRules(devices=2, quorum=1.0), classes=CLASSES))
    for i in range(2):
        fleet.start_device(f"cam-{i}", turned(features(60, i, CLASSES, 0.2), i), shifted(40, i + 9))
    fleet.run()
    run = fleet.coordinator.run_state.run.id
    last = {
        report.device: report.accuracy
        for report in fleet.journal.reports.all(run)
        if report.round == 2
    }
    shared = model_file.read(model_file.path_of(fleet.journal.path, run)).model
    for i in range(2):
        whole = model_file.read(tmp_path / f"cam-{i}" / "personal.safetensors").model
        kept = gate.own_of(whole)
        weight = kept.parameters["weight"]  # as received, in float16
        np.testing.assert_allclose(weight, shared.parameters["weight"], atol=1e-3)
        q = kept.parameters["map"].astype(np.float64)
        np.testing.assert_allclose(q @ q.T, np.eye(D), atol=1e-5)
        assert np.abs(q - np.eye(D)).max() > 0.01
        without = replace(kept, parameters={"weight": weight})
        assert last[f"cam-{i}"]["personal"] == right(whole, shifted(40, i + 9))
        assert last[f"cam-{i}"]["federated"] == right(without, shifted(40, i + 9))


def test_both_models_can_be_asked_for(random_bundle: Bundle, tmp_path: Path) -> None:
    classes, dim = random_bundle.classes, random_bundle.manifest.dim
    plan = Plan("fedot", rounds=1)
    shared = methods.initial(plan, classes, dim)
    task = LocalTask(plan, shared, features(20, 1, classes), nothing(dim), classes, 0)
    its = methods.personal(task)
    assert its is not None
    for number, model in enumerate((shared, its)):
        path = tmp_path / f"{number}.safetensors"
        encoder_id, digest = random_bundle.manifest.encoder_id, classes.digest
        model_file.write(path, TrainedModel(model, "run-0", plan, encoder_id, digest))
        found = find_model(str(path), tmp_path / "journal.sqlite", random_bundle)
        assert found.model.parameters.keys() == model.parameters.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 0}, "blocks: expected 1 or more, got 0"),
        ({"map_epochs": 0}, "map_epochs: expected 1 or more, got 0"),
        ({"block": 4}, "unknown key 'block'; did you mean 'blocks'"),
    ],
)
def test_what_is_wrong_with_an_option(options: dict[str, Scalar], message: str) -> None:
    with pytest.raises(ConfigError, match=f"fedot options: {message}"):
        fedot.METHOD.check_options(options)


def test_it_makes_personal_models_anyway() -> None:
    with pytest.raises(ConfigError, match="fedot already makes a personal model on each device"):
        methods.with_defaults(Plan("fedot", personal_epochs=1))
