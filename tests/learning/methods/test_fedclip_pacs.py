"""FedCLIP over ten rounds with one domain held out: equal to plain PyTorch within 1e-5.

Uses real pictures and the stand-in encoder if ../shared/data exists next to the checkout, and
otherwise generated features of the same width.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from averaged import contrastive, shifted
from checkout import SHARED
from in_memory import ENCODER, class_texts, nothing
from torch import nn

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.learning import methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.local import training_seed
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.records import ClassTexts, Features, Plan
from fedclip_edge.vision.encoder import open_onnx
from fedclip_edge.vision.pictures import Preprocessing, load

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
ROUNDS, SEED, PER_CLASS = 10, 5, 8
SCALING = Preprocessing(224, "shortest", 256, "bilinear", (0.50196,) * 3, (0.50196,) * 3)
pytestmark = pytest.mark.one_python


def real() -> tuple[dict[str, Features], ClassTexts]:
    names = tuple(json.loads((SHARED / "standin" / "classes.json").read_text()))
    texts = np.load(SHARED / "standin" / "class_texts.npy")
    encoder_file = (SHARED / "standin" / "image_encoder.onnx").read_bytes()
    encoder = open_onnx(encoder_file, EncoderConfig(), image_size=224)
    found = {}
    for domain in DOMAINS:
        vectors, labels = [], []
        for label, name in enumerate(names):
            files = sorted((SHARED / "pacs" / domain / name).iterdir())[:PER_CLASS]
            vectors.append(encoder.embed(np.stack([load(path, SCALING) for path in files])))
            labels += [label] * len(files)
        found[domain] = Features(np.concatenate(vectors), np.array(labels, np.int64), ENCODER)
    return found, ClassTexts(names, texts, 100.0, "a {}")


def drawn() -> tuple[dict[str, Features], ClassTexts]:
    classes = class_texts(tuple("abcdefg"), 512)
    data = {domain: shifted(84, i, classes, 0.1) for i, domain in enumerate(DOMAINS)}
    return data, classes


@pytest.fixture(scope="module")
def world() -> tuple[dict[str, Features], ClassTexts]:
    torch.set_num_threads(1)
    return real() if SHARED.is_dir() else drawn()


def rendered(
    start: dict[str, torch.Tensor], data: dict[str, Features], classes: ClassTexts
) -> dict[str, torch.Tensor]:
    """The reference's loop: a new Adam per round, and the uniform average of the state_dicts."""
    texts, server = torch.tensor(classes.vectors), start
    dim = texts.shape[1]
    for closed in range(ROUNDS):
        states = []
        for name, its in data.items():
            gate = nn.Sequential(
                nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim), nn.Softmax(dim=1)
            )
            gate.load_state_dict(server)
            optimizer = torch.optim.Adam(
                gate.parameters(), lr=5e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2
            )
            f, labels = torch.tensor(its.vectors), torch.tensor(its.labels)
            random = np.random.default_rng(training_seed(SEED, closed, name))
            for batch in torch.split(torch.from_numpy(random.permutation(len(labels))), 32):
                if len(batch) > 1:
                    adapted = gate(f[batch]) * f[batch]
                    adapted = adapted / adapted.norm(dim=-1, keepdim=True)
                    optimizer.zero_grad()
                    loss = contrastive(adapted, texts[labels[batch]], classes.logit_scale)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
            states.append(gate.state_dict())
        server = {key: torch.stack([s[key] for s in states]).mean(dim=0) for key in server}
    return server


@pytest.mark.parametrize("held_out", DOMAINS)
def test_ten_rounds_are_plain_pytorchs(
    world: tuple[dict[str, Features], ClassTexts], held_out: str
) -> None:
    everywhere, classes = world
    data = {name: its for name, its in everywhere.items() if name != held_out}
    dim = classes.vectors.shape[1]
    plan = Plan("fedclip", rounds=ROUNDS, seed=SEED)
    model = methods.initial(plan, classes, dim)
    start = {name: torch.tensor(term) for name, term in model.parameters.items()}
    for closed in range(ROUNDS):
        total = ExactSum(plan)
        for name, its in data.items():
            seed = training_seed(SEED, closed, name)
            total.add(methods.fit(LocalTask(plan, model, its, nothing(dim), classes, seed)))
        model, _ = methods.combine(model, total, {})
    expected = rendered(start, data, classes)
    apart = max(float(np.abs(model.parameters[n] - t.numpy()).max()) for n, t in expected.items())
    moved = max(float((start[n] - t).abs().max()) for n, t in expected.items())
    print(f"{held_out}: largest difference {apart:.1e}, movement {moved:.1e}")  # noqa: T201
    assert apart <= 1e-5  # with 1e-4, a wrong beta2 would pass
    assert moved > 5e-4  # fifty times the tolerance
