"""The mini-batch loop: a seeded order, each picture once per epoch, and the named losses."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import system
import torch
from checkout import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import class_texts, features
from torch import nn

from fedclip_edge.learning import methods, training
from fedclip_edge.learning.methods import fedclip
from fedclip_edge.learning.methods.fedclip import Options
from fedclip_edge.learning.optimizers import Adam
from fedclip_edge.learning.torch_operations import TORCH
from fedclip_edge.learning.training import batches
from fedclip_edge.records import F32, Arrays, ClassTexts, Features

pytestmark = pytest.mark.one_python
D = 16
CLASSES = class_texts(dim=D)
FAST = Options(lr=1e-3)
LOSSES = ("contrastive", "multi-positive", "cross-entropy")

FRESH_PROCESS = """
import hashlib, json, sys
import numpy as np, torch
from fedclip_edge.learning.methods import fedclip
from fedclip_edge.learning.methods.fedclip import Options
from fedclip_edge.learning.training import objective, train
from fedclip_edge.records import ClassTexts, Features

torch.set_num_threads(1)
vectors, labels, texts = json.load(sys.stdin)
classes = ClassTexts(("ant", "bee", "cat"), np.array(texts, np.float32), 100.0, "")
pictures = Features(np.array(vectors, np.float32), np.array(labels), "e" * 64)
start = fedclip.METHOD.initial(classes, pictures.vectors.shape[1], 0)
options = Options(lr=1e-3)
loss = objective(fedclip.logits, classes, options.loss)
terms = train(start.parameters, pictures, loss, options, 1)
print(hashlib.sha256(b"".join(terms[name].tobytes() for name in sorted(terms))).hexdigest())
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(
    terms: Arrays, features: Features, classes: ClassTexts, options: Options, seed: int
) -> dict[str, F32]:
    """The training of FedCLIP, which supports every loss."""
    loss = training.objective(fedclip.logits, classes, options.loss)
    return training.train(terms, features, loss, options, seed)


def start() -> Arrays:
    return fedclip.METHOD.initial(CLASSES, D, 0).parameters


def pictures(count: int) -> Features:
    return features(count, 3, CLASSES)


def digest(terms: Arrays) -> str:
    return hashlib.sha256(b"".join(terms[name].tobytes() for name in sorted(terms))).hexdigest()


def trained(count: int = 50, options: Options = FAST, seed: int = 1) -> dict[str, F32]:
    return train(start(), pictures(count), CLASSES, options, seed)


def largest(a: Arrays, b: Arrays) -> float:
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


# --- the order -----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 200), st.integers(2, 64), st.integers(1, 3), st.integers(0, 2**64 - 1))
def test_every_picture_once_per_epoch_but_never_alone(
    count: int, batch_size: int, epochs: int, seed: int
) -> None:
    drawn = [batch.tolist() for batch in batches(count, batch_size, epochs, seed)]
    sizes = [min(batch_size, count - first) for first in range(0, count, batch_size)]
    sizes = [size for size in sizes if size > 1]
    assert [len(batch) for batch in drawn] == sizes * epochs
    for epoch in range(epochs):
        its = drawn[epoch * len(sizes) : (epoch + 1) * len(sizes)]
        once = [picture for batch in its for picture in batch]
        assert len(once) == sum(sizes) == len(set(once))
        assert len(once) == count or len(once) == count - 1
        assert set(once) <= set(range(count))
        if len(once) == count - 1:
            assert count % batch_size == 1


def test_each_epoch_has_another_order_and_the_seed_decides_it() -> None:
    def order(seed: int, epochs: int = 2) -> list[int]:
        return torch.cat(list(batches(40, 8, epochs, seed))).tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1)[:40] != order(1)[40:]
    assert order(1)[:40] == order(1, epochs=1)
    assert order(1)[:40] != sorted(order(1)[:40])


# --- determinism ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_seed_gives_the_same_bytes(loss: str) -> None:
    options = replace(fedclip.METHOD.check_options({"loss": loss}), lr=1e-3, epochs=2)
    torch.manual_seed(1)
    first = trained(options=options)
    torch.manual_seed(2)  # the global generator must not matter
    assert digest(first) == digest(trained(options=options))
    assert digest(first) != digest(trained(options=options, seed=2))


def test_the_same_seed_gives_the_same_bytes_in_another_process() -> None:
    data = pictures(50)
    told = json.dumps([data.vectors.tolist(), data.labels.tolist(), CLASSES.vectors.tolist()])
    with contextlib.ExitStack() as ends:
        children = [
            ends.enter_context(
                system.running(
                    [sys.executable, "-c", FRESH_PROCESS],
                    env={**os.environ, "PYTHONHASHSEED": str(i), "PYTHONPATH": str(ROOT)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for i in (1, 2)
        ]
        printed = [child.communicate(told)[0].strip() for child in children]
    assert printed == [digest(trained())] * 2


def test_what_goes_in_is_left_alone() -> None:
    terms, data = start(), pictures(50)
    before = digest(terms), digest({"vectors": data.vectors}), data.labels.tobytes()
    result = train(terms, data, CLASSES, FAST, 1)
    assert (digest(terms), digest({"vectors": data.vectors}), data.labels.tobytes()) == before
    assert largest(result, terms) > 0
    assert {name: (t.shape, t.dtype) for name, t in result.items()} == {
        name: (t.shape, t.dtype) for name, t in terms.items()
    }


def before(
    terms: Arrays, features: Features, classes: ClassTexts, options: Options, seed: int
) -> dict[str, F32]:
    """A fixed copy of the first version of the loop, as the expected result."""
    trained = {name: torch.tensor(term, requires_grad=True) for name, term in terms.items()}
    parameters = list(trained.values())
    vectors, labels = torch.from_numpy(features.vectors), torch.from_numpy(features.labels)
    texts = torch.from_numpy(classes.vectors)
    optimizer = Adam(
        parameters,
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        weight_decay=options.weight_decay,
        decoupled=options.optimizer == "adamw",
    )
    for batch in batches(len(features), options.batch_size, options.epochs, seed):
        own = labels[batch]
        facing = texts if options.loss == "cross-entropy" else texts[own]
        scores = fedclip.logits(TORCH, trained, vectors[batch], facing, classes.logit_scale)
        loss = _loss_before(scores, own, options.loss)
        optimizer.step(torch.autograd.grad(loss, parameters))
    return {name: term.detach().numpy() for name, term in trained.items()}


def _loss_before(scores: torch.Tensor, labels: torch.Tensor, loss: str) -> torch.Tensor:
    if loss == "cross-entropy":
        return nn.functional.cross_entropy(scores, labels)
    if loss == "contrastive":
        target = torch.arange(len(labels))
        rows = nn.functional.cross_entropy(scores, target)
        return (rows + nn.functional.cross_entropy(scores.T, target)) / 2
    is_own = labels[:, None] == labels[None, :]
    own = scores.masked_fill(~is_own, -torch.inf)
    rows = torch.logsumexp(scores, dim=1) - torch.logsumexp(own, dim=1)
    columns = torch.logsumexp(scores, dim=0) - torch.logsumexp(own, dim=0)
    return (rows.mean() + columns.mean()) / 2


@pytest.mark.parametrize("loss", LOSSES)
def test_fedclip_trains_to_the_same_bytes_as_before_others_shared_its_loop(loss: str) -> None:
    options = replace(fedclip.METHOD.check_options({"loss": loss}), epochs=3)
    asked = (start(), pictures(70), CLASSES, options, 4)
    assert digest(train(*asked)) == digest(before(*asked)) != digest(start())


# --- few pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("count", [0, 1])
def test_without_two_pictures_the_terms_stay(count: int, loss: str) -> None:
    options = replace(fedclip.METHOD.check_options({"loss": loss}), lr=1e-3)
    assert digest(trained(count, options)) == digest(start())
    assert digest(trained(2, options)) != digest(start())


def test_a_last_batch_of_one_is_left_out() -> None:
    """Training must ignore the picture that comes last in the shuffled order."""
    last = int(np.random.default_rng(1).permutation(33)[-1])
    data = pictures(33)
    without = np.arange(33) != last
    # The other 32 pictures form one batch; its loss does not depend on their order.
    others = Features(data.vectors[without], data.labels[without], data.encoder_id)
    expected = train(start(), others, CLASSES, FAST, 1)
    assert largest(trained(33), expected) < 1e-5
    assert largest(trained(34), expected) > 1e-4


# --- the losses ----------------------------------------------------------------------------------


def one_of_each() -> Features:
    """One picture of every class: a batch without duplicates."""
    data = pictures(60)
    rows = [int(np.flatnonzero(data.labels == label)[0]) for label in range(len(CLASSES.names))]
    return Features(data.vectors[rows], data.labels[rows], data.encoder_id)


def test_without_duplicates_multi_positive_is_contrastive() -> None:
    multi = train(start(), one_of_each(), CLASSES, replace(FAST, loss="multi-positive"), 1)
    assert largest(multi, train(start(), one_of_each(), CLASSES, FAST, 1)) < 1e-6


def test_with_duplicates_the_three_losses_differ() -> None:
    results = [
        trained(options=replace(fedclip.METHOD.check_options({"loss": loss}), lr=1e-3))
        for loss in LOSSES
    ]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert largest(results[i], results[j]) > 1e-4


def at_its_texts(per_class: int) -> tuple[Features, ClassTexts]:
    """Pictures whose gated features lie exactly on one-hot class texts.

    Only a loss that treats pictures of the same class as negatives has anything left to learn.
    """
    texts = ClassTexts(("a", "b"), np.eye(2, 4, dtype=np.float32), 100.0, "{}")
    labels = np.arange(2 * per_class) % 2
    return Features(10 * texts.vectors[labels], labels.astype(np.int64), "e" * 64), texts


@pytest.mark.parametrize("loss", ["multi-positive", "cross-entropy"])
def test_one_classs_pictures_are_no_negatives_of_each_other(loss: str) -> None:
    """At the optimum these losses have no gradient; a change in one norm must not matter."""
    data, texts = at_its_texts(4)
    options = replace(fedclip.METHOD.check_options({"loss": loss}), lr=1e-3, weight_decay=0.0)
    terms = fedclip.METHOD.initial(texts, 4, 0).parameters
    assert largest(train(terms, data, texts, options, 1), terms) < 1e-6


def test_the_contrastive_loss_evens_out_one_classs_pictures() -> None:
    """Pictures of the same class count as negatives, so this loss moves where the others do not."""
    data, texts = at_its_texts(4)
    spread = data.vectors.copy()
    spread[:, 2] = np.linspace(0, 3, len(spread))  # still classified with a wide margin
    uneven = Features(spread, data.labels, data.encoder_id)
    terms = fedclip.METHOD.initial(texts, 4, 0).parameters
    moved = {}
    for loss in LOSSES:
        options = replace(fedclip.METHOD.check_options({"loss": loss}), lr=1e-3, weight_decay=0.0)
        moved[loss] = largest(train(terms, uneven, texts, options, 1), terms)
    assert moved["contrastive"] > 5e-4
    assert moved["multi-positive"] < 1e-5
    assert moved["cross-entropy"] < 1e-5


@pytest.mark.parametrize("loss", LOSSES)
def test_training_classifies_better_than_it_began(loss: str) -> None:
    data = pictures(200)
    options = replace(
        fedclip.METHOD.check_options({"loss": loss}), lr=1e-2, weight_decay=0.0, epochs=10
    )

    def mean_loss(terms: Arrays) -> float:
        scores = methods.predict(
            replace(fedclip.METHOD.initial(CLASSES, D, 0), parameters=terms), *asked
        )
        return float(nn.CrossEntropyLoss()(torch.tensor(scores), torch.tensor(data.labels)))

    asked = (data.vectors, CLASSES)
    assert mean_loss(train(start(), data, CLASSES, options, 1)) < 0.8 * mean_loss(start())


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 2e-3},
        {"beta1": 0.5},
        {"beta2": 0.5},
        {"eps": 1e-3},
        {"weight_decay": 0.0},
        {"batch_size": 16},
        {"epochs": 2},
        {"optimizer": "adamw"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_option_changes_what_is_trained(change: dict[str, float | str]) -> None:
    options = fedclip.METHOD.check_options({"lr": 1e-3, **change})
    assert largest(trained(options=options), trained()) > 1e-6
