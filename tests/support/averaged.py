"""A plain PyTorch version of methods that train with cross-entropy and are averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from in_memory import class_texts, features, nothing
from torch import Tensor, nn

from fedclip_edge.learning import methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.records import ClassTexts, Features, Model, Plan, Scalar

D = 16
CLASSES = class_texts(("ant", "bee", "cat", "dog"), D)
SIZES = (70, 33, 40)  # 33: the last batch has one picture, which is left out
Forward = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]


def shifted(count: int, seed: int, classes: ClassTexts = CLASSES, noise: float = 0.4) -> Features:
    """Pictures with mixed and shifted features, so that the class texts no longer fit."""
    data, dim = features(count, seed, classes, noise), classes.vectors.shape[1]
    random = np.random.default_rng(11)
    mixed = data.vectors @ (np.eye(dim) + random.normal(size=(dim, dim)) / np.sqrt(dim))
    moved = mixed + 4 * random.normal(size=dim)
    return replace(data, vectors=moved.astype(np.float32))


def rendered(start: Model, trained: list[str], forward: Forward, lr: float, rounds: int) -> Model:
    """The average of devices trained with torch.optim.Adam; `forward` gives the logits."""
    texts = torch.tensor(CLASSES.vectors)
    server = {name: torch.tensor(term) for name, term in start.parameters.items()}
    for number in range(rounds):
        results = []
        for device, size in enumerate(SIZES):
            data = shifted(size, device)
            own = {n: t.clone().requires_grad_(n in trained) for n, t in server.items()}
            optimizer = torch.optim.Adam(
                [own[name] for name in trained], lr=lr, betas=(0.9, 0.999), eps=1e-6
            )
            order = np.random.default_rng(100 * number + device).permutation(size)
            for first in range(0, size, 32):
                batch = order[first : first + 32]
                if len(batch) > 1:
                    optimizer.zero_grad()
                    scores = forward(own, torch.tensor(data.vectors[batch]), texts)
                    labels = torch.tensor(data.labels[batch])
                    nn.functional.cross_entropy(scores, labels).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
            results.append(own)
        for name in trained:
            server[name] = torch.stack([own[name].detach() for own in results]).mean(dim=0)
    return Model(start.method, rounds, {name: t.numpy() for name, t in server.items()})


def federated(method: str, options: Mapping[str, Scalar], rounds: int) -> tuple[Model, Model]:
    """The first and the last model of the package's own method."""
    plan = Plan(method, options, rounds=rounds, seed=3)
    first = model = methods.initial(plan, CLASSES, D)
    for number in range(rounds):
        total = ExactSum(plan)
        for device, size in enumerate(SIZES):
            data, seed = shifted(size, device), 100 * number + device
            total.add(methods.fit(LocalTask(plan, model, data, nothing(D), CLASSES, seed)))
        model, _ = methods.combine(model, total, {})
    return first, model


def assert_same(method: str, trained: list[str], forward: Forward) -> None:
    """Compare every parameter after five rounds within 1e-4; the models move by far more."""
    first, last = federated(method, {"lr": 1e-3}, 5)
    expected = rendered(first, trained, forward, 1e-3, 5)
    assert last.parameters.keys() == expected.parameters.keys()
    for name, term in expected.parameters.items():
        np.testing.assert_allclose(last.parameters[name], term, rtol=0, atol=1e-4)
        moved = float(np.abs(term - first.parameters[name]).max())
        assert (moved > 2e-3) == (name in trained)


def accuracy(model: Model) -> float:
    """Accuracy on pictures that were not used for training."""
    asked = shifted(400, 77)
    guesses = methods.predict(model, asked.vectors, CLASSES).argmax(axis=1)
    return float(np.mean(guesses == asked.labels))


def contrastive(adapted: Tensor, text: Tensor, scale: float) -> Tensor:
    """CLIP's own loss; `adapted` (B, D) and the text of each picture (B, D) are unit vectors."""
    logits_per_image = scale * adapted @ text.t()
    logits_per_text = logits_per_image.t()
    ground_truth = torch.arange(len(adapted))
    loss = nn.CrossEntropyLoss()
    rows: Tensor = loss(logits_per_image, ground_truth)
    columns: Tensor = loss(logits_per_text, ground_truth)
    return (rows + columns) / 2
