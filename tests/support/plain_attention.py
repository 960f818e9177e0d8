"""The feature attention module of FACMIC and FAA-CLIP in plain PyTorch, trained and averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from averaged import CLASSES, SIZES, D, contrastive, shifted
from in_memory import nothing
from torch import Tensor, nn

from fedclip_edge.learning import methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.records import Features, Model, Plan

# Takes the gate, the gated features of a batch, their labels, and an order of unlabelled pictures.
Further = Callable[[nn.Module, Tensor, Tensor, Iterator[Tensor]], Tensor]


def module(model: Model) -> nn.Sequential:
    """The module of the references with a model's parameters."""
    made = nn.Sequential(
        nn.Linear(D, D), nn.BatchNorm1d(D), nn.LeakyReLU(), nn.Linear(D, D), nn.Softmax(dim=1)
    )
    terms = {name: torch.tensor(term) for name, term in model.parameters.items()}
    # The only entry that the model lacks.
    made.load_state_dict({**terms, "1.num_batches_tracked": torch.tensor(0)})
    return made


def federated(plan: Plan, validation: Features | None = None) -> tuple[Model, Model]:
    """The first and the last model of the package's own method."""
    first = model = methods.initial(plan, CLASSES, D)
    held = nothing(D) if validation is None else validation
    for number in range(plan.rounds):
        total = ExactSum(plan)
        for device, size in enumerate(SIZES):
            task = LocalTask(
                plan, model, shifted(size, device), held, CLASSES, 100 * number + device
            )
            total.add(methods.fit(task))
        model, _ = methods.combine(model, total, {})
    return first, model


def rendered(
    start: Model,
    rounds: int,
    weights: tuple[int, ...],
    validation: Features | None = None,
    further: Further | None = None,
) -> Model:
    """The weighted average of devices trained with torch.optim.Adam as in the reference codes."""
    texts = torch.tensor(CLASSES.vectors)
    server = start
    for number in range(rounds):
        results = []
        for device, size in enumerate(SIZES):
            gate, data, seed = module(server).train(), shifted(size, device), 100 * number + device
            optimizer = torch.optim.Adam(
                gate.parameters(), lr=5e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.02
            )
            order = np.random.default_rng(seed).permutation(size)
            unlabelled = iter(()) if validation is None else endless(validation, seed)
            for first in range(0, size - 1, 32):
                batch = order[first : first + 32]
                f, labels = torch.tensor(data.vectors[batch]), torch.tensor(data.labels[batch])
                gated = gate(f) * f
                loss = contrastive(nn.functional.normalize(gated), texts[labels], 100.0)
                if further is not None:
                    loss = loss + further(gate, gated, labels, unlabelled)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            results.append(gate.state_dict())
        averaged = {
            name: sum(w * own[name] for w, own in zip(weights, results, strict=True)) / sum(weights)
            for name in start.parameters
        }
        server = Model(start.method, number + 1, {n: t.numpy() for n, t in averaged.items()})
    return server


def endless(data: Features, seed: int) -> Iterator[Tensor]:
    """Batches of 32 features in a new random order each time; a batch of one is left out."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(len(data))
        for first in range(0, len(data) - 1, 32):
            yield torch.tensor(data.vectors[order[first : first + 32]])


def assert_same(ours: Model, expected: Model, start: Model) -> None:
    """Compare every parameter, and the running statistics too, within 1e-5."""
    assert ours.parameters.keys() == expected.parameters.keys()
    for name, term in expected.parameters.items():
        moved = float(np.abs(term - start.parameters[name]).max())
        assert moved > 1e-4, name
        np.testing.assert_allclose(
            ours.parameters[name], term, rtol=0, atol=1e-5 + 1e-5 * moved, err_msg=name
        )
