"""FedCLIP: the federation computes the same model as the paper's reference code.

Three devices train three rounds through the real coordinator, sessions, wire format and journal.
The result is compared with a plain PyTorch version of the reference (microsoft/PersonalizedFL at
441670e, fedclip/methods/fed_at_clip.py), which shares only the order of the pictures with the
package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from averaged import contrastive
from in_memory import ENCODER, Fleet, class_texts, nothing
from opened import opened
from torch import Tensor, nn

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.learning import methods
from fedclip_edge.learning.local import training_seed
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.methods import fedclip
from fedclip_edge.protocol import wire
from fedclip_edge.records import Features, Model, Plan, Scalar

D = 64
ROUNDS = 3
NOTHING = nothing(D)
SEED = 5
TOLERANCE = 1e-5
CLASSES = class_texts(("ant", "bee", "cat", "dog", "emu"), D)
# 97 = 3 * 32 + 1: the last batch has one picture, which the reference leaves out.
SIZES = {"cam-a": 100, "cam-b": 97, "cam-c": 70}
StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Reference:
    """Settings of the plain PyTorch version; the defaults are those of the reference code."""

    loss: str = "contrastive"
    optimizer: str = "adam"
    lr: float = 5e-5
    weight_decay: float = 0.2
    weighting: str = "uniform"
    epochs: int = 1
    # Possible mistakes of an implementation. Our method has no options for them.
    unit_features: bool = False
    keeps_moments: bool = False
    trains_on_one: bool = False
    one_seed: bool = False

    @property
    def options(self) -> dict[str, Scalar]:
        """The equivalent options of our method, without those that have the default value."""
        names = ("loss", "optimizer", "lr", "weight_decay", "weighting", "epochs")
        mine = {name: getattr(self, name) for name in names}
        return {name: value for name, value in mine.items() if value != getattr(Reference(), name)}


# The model moves 90 tolerances, so a difference would show. A larger learning rate would not do: if
# a gradient is nearly zero, rounding alone changes Adam's first step by up to 5 % of lr.
FAST = Reference(lr=1e-4)
SETTINGS = {
    "defaults": Reference(),
    "lr": FAST,
    "cross-entropy": replace(FAST, loss="cross-entropy"),
    "multi-positive": replace(FAST, loss="multi-positive"),
    "adamw": replace(FAST, optimizer="adamw"),
    "no weight decay": replace(FAST, weight_decay=0.0),
    "weighted by pictures": replace(FAST, weighting="pictures"),
    "two epochs": replace(FAST, epochs=2),
    "all at once": Reference("cross-entropy", "adamw", 1e-4, 0.1, "pictures", 2),
}
MISTAKES = {
    "unit features": replace(FAST, unit_features=True),
    "moments kept": replace(FAST, keeps_moments=True),
    "trained on one picture": replace(FAST, trains_on_one=True),
    "the same seed everywhere": replace(FAST, one_seed=True),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def features(device: str) -> Features:
    """Raw features scattered around their class text, with norms of about 10."""
    random = np.random.default_rng(sorted(SIZES).index(device))
    labels = random.integers(0, len(CLASSES.names), SIZES[device])
    vectors = CLASSES.vectors[labels] + random.normal(size=(len(labels), D))
    norms = 10 * random.uniform(0.8, 1.2, (len(labels), 1))
    vectors *= norms / np.linalg.norm(vectors, axis=1, keepdims=True)
    return Features(vectors.astype(np.float32), labels.astype(np.int64), ENCODER)


def plan_of(how: Reference) -> Plan:
    return Plan(
        "fedclip",
        options=how.options,
        rounds=ROUNDS,
        seed=SEED,
        vote="off",
        codec_up="fp32",
        codec_down="fp32",
    )


@cache
def initial() -> Mapping[str, Tensor]:
    """The initial parameters of both sides."""
    model = fedclip.METHOD.initial(CLASSES, D, SEED)
    return {name: torch.tensor(term) for name, term in model.parameters.items()}


# --- the reference in plain PyTorch --------------------------------------------------------------


def multi_positive(adapted: Tensor, text: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Mean over rows and columns of minus the log of the total probability of the own class."""
    scores = scale * adapted @ text.t()
    losses = []
    for side in (scores, scores.t()):
        for i in range(len(side)):
            log_p = side[i] - torch.logsumexp(side[i], dim=0)
            losses.append(-torch.logsumexp(log_p[labels == labels[i]], dim=0))
    return torch.stack(losses).mean()


def cross_entropy(adapted: Tensor, labels: Tensor, texts: Tensor, scale: float) -> Tensor:
    scores = scale * adapted @ texts.t()
    own = scores[torch.arange(len(labels)), labels]
    return (torch.logsumexp(scores, dim=1) - own).mean()


def loss_of(how: Reference, gate: nn.Module, f: Tensor, labels: Tensor) -> Tensor:
    texts, scale = torch.tensor(CLASSES.vectors), CLASSES.logit_scale
    adapted = gate(f) * f
    adapted = adapted / adapted.norm(dim=-1, keepdim=True)
    if how.loss == "cross-entropy":
        return cross_entropy(adapted, labels, texts, scale)
    if how.loss == "multi-positive":
        return multi_positive(adapted, texts[labels], labels, scale)
    return contrastive(adapted, texts[labels], scale)


def optimizer_of(how: Reference, gate: nn.Module) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if how.optimizer == "adamw" else torch.optim.Adam
    return kind(
        gate.parameters(), lr=how.lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=how.weight_decay
    )


def client_round(
    how: Reference, gate: nn.Module, optimizer: torch.optim.Optimizer, data: Features, seed: int
) -> None:
    f, labels = torch.tensor(data.vectors), torch.tensor(data.labels)
    if how.unit_features:
        f = f / f.norm(dim=-1, keepdim=True)
    random = np.random.default_rng(seed)
    for _ in range(how.epochs):
        order = torch.from_numpy(random.permutation(len(labels)))
        for batch in torch.split(order, 32):
            if len(batch) > 1 or how.trains_on_one:
                optimizer.zero_grad()
                loss_of(how, gate, f[batch], labels[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()


@cache
def rendered(how: Reference) -> StateDict:
    """The server's state_dict after the last round."""
    gates = {
        name: nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D), nn.Softmax(dim=1))
        for name in SIZES
    }
    optimizers = {name: optimizer_of(how, gate) for name, gate in gates.items()}
    pictures = sum(SIZES.values())
    share = {
        name: count / pictures if how.weighting == "pictures" else 1 / len(SIZES)
        for name, count in SIZES.items()
    }
    server = dict(initial())
    for closed in range(ROUNDS):
        for name, gate in gates.items():
            gate.load_state_dict(server)
            if not how.keeps_moments:
                optimizers[name] = optimizer_of(how, gate)
            seed = SEED if how.one_seed else training_seed(SEED, closed, name)
            client_round(how, gate, optimizers[name], features(name), seed)
        trained = {name: gate.state_dict() for name, gate in gates.items()}
        for key in server:
            server[key] = torch.stack([share[n] * trained[n][key] for n in SIZES]).sum(dim=0)
    return server


# --- the comparison ------------------------------------------------------------------------------


def federated(folder: Path, plan: Plan) -> tuple[Model, Model]:
    """The first and the last model in the coordinator's journal."""
    fleet = opened(Fleet(folder, plan, RunRules(devices=len(SIZES), quorum=1.0), CLASSES))

    def newest() -> Model:
        body = fleet.journal.rounds.newest_model(fleet.coordinator.run_state.run.id).payload
        return wire.unpack_model(
            body, plan.codec_down, fleet.coordinator.run_state.layout.parameters
        )

    first = newest()
    for name in SIZES:
        fleet.start_device(name, features(name))
    fleet.run()
    return first, newest()


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def tensors(model: Model) -> StateDict:
    return {name: torch.tensor(term) for name, term in model.parameters.items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_federation_is_the_reference(name: str, tmp_path: Path) -> None:
    how = SETTINGS[name]
    first, last = federated(tmp_path, plan_of(how))
    assert (first.round, last.round) == (0, ROUNDS)
    moved = difference(tensors(first), tensors(last))
    apart = difference(tensors(last), rendered(how))
    print(f"{name}: largest difference {apart:.1e}, movement {moved:.1e}")  # noqa: T201
    assert difference(tensors(first), initial()) == 0
    assert apart <= TOLERANCE
    assert moved > 20 * TOLERANCE  # otherwise a federation that does nothing would pass


@pytest.mark.parametrize("name", [*SETTINGS, *MISTAKES])
def test_the_comparison_tells_every_variant_apart(name: str) -> None:
    """Otherwise an ignored setting or a mistake would pass the test above."""
    variant = {**SETTINGS, **MISTAKES}[name]
    apart = difference(rendered(variant), rendered(FAST))
    assert apart > 5 * TOLERANCE or variant == FAST


def test_the_reference_is_the_default() -> None:
    """A plan that sets only the codecs, without a vote, gives the published algorithm."""
    expected = Plan(
        "fedclip", rounds=ROUNDS, seed=SEED, vote="off", codec_up="fp32", codec_down="fp32"
    )
    assert plan_of(Reference()) == expected
    assert Plan("fedclip").method == "fedclip"


def test_every_difference_from_the_average_is_float_rounding(tmp_path: Path) -> None:
    """Devices send changes; adding their mean equals averaging the trained adapters."""
    plan = replace(plan_of(Reference()), options={"lr": 1e-4}, rounds=1)
    _, last = federated(tmp_path, plan)
    start = fedclip.METHOD.initial(CLASSES, D, SEED)
    changes = [
        methods.fit(
            LocalTask(plan, start, features(n), NOTHING, CLASSES, training_seed(SEED, 0, n))
        ).delta
        for n in SIZES
    ]
    for name, term in start.parameters.items():
        average = np.mean([term.astype(np.float64) + change[name] for change in changes], axis=0)
        np.testing.assert_allclose(last.parameters[name], average, rtol=0, atol=1e-7)
