"""The seeded mini-batch loop that every method trained by gradients runs, and what it sends.

Law: the order of the pictures comes from the seed alone, and nothing else is random; in one torch
thread the same seed gives the same bytes on one kind of machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedclip_edge.errors import ConfigError
from fedclip_edge.learning.optimizers import Adam
from fedclip_edge.learning.options import Training
from fedclip_edge.records import F32, ClassTexts, Features, Terms, Update

# Of the terms that are trained, a batch's raw vectors (B, D) and its labels (B,).
Loss = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]
Logits = Callable[[Mapping[str, Tensor], Tensor, Tensor, float], Tensor]  # a method's own
NO_TERMS: Terms = MappingProxyType({})


def use_one_thread() -> None:
    """For this process: sums in one order, so that a seed means one result on one kind of box."""
    torch.set_num_threads(1)


def change(
    terms: Terms, features: Features, loss: Loss, options: Training, seed: int, round: int
) -> Update:
    """What a device sends of one round's training: `weight * (trained - received)`.

    `round` is that of the model received. Raises ConfigError where training diverged.
    """
    trained = train(terms, features, loss, options, seed)
    if not all(np.isfinite(term).all() for term in trained.values()):
        raise ConfigError(
            f"training diverged in round {round + 1}; lower lr or weight_decay under [plan.options]"
        )
    weight = max(1, len(features)) if options.weighting == "pictures" else 1
    return Update("sum", weight, {name: weight * (trained[name] - terms[name]) for name in terms})


def classification(logits: Logits, classes: ClassTexts, fixed: Terms = NO_TERMS) -> Loss:
    """The cross-entropy of a method's logits; `fixed` are the model's terms that are not trained."""
    texts, scale = torch.from_numpy(classes.vectors), classes.logit_scale  # (C, D)
    constant = {name: torch.tensor(term) for name, term in fixed.items()}

    def loss(terms: Mapping[str, Tensor], vectors: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits({**constant, **terms}, vectors, texts, scale), labels)

    return loss


def train(
    terms: Terms, features: Features, loss: Loss, options: Training, seed: int
) -> dict[str, F32]:
    """The terms after `options.epochs` over the features; the input is left alone."""
    trained = {name: torch.tensor(term, requires_grad=True) for name, term in terms.items()}
    parameters = list(trained.values())
    vectors = torch.from_numpy(features.vectors)  # (N, D)
    labels = torch.from_numpy(features.labels)  # (N,)
    optimizer = Adam(
        parameters,
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        weight_decay=options.weight_decay,
        decoupled=options.optimizer == "adamw",
    )
    for batch in batches(len(features), options.batch_size, options.epochs, seed):
        value = loss(trained, vectors[batch], labels[batch])
        optimizer.step(torch.autograd.grad(value, parameters))
    return {name: term.detach().numpy() for name, term in trained.items()}


def batches(count: int, batch_size: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Shuffled indices, anew each epoch; the last batch may be short.

    A batch of one is skipped: it has no negatives (FedCLIP's reference skips it as well).
    """
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        order = torch.from_numpy(random.permutation(count))
        for start in range(0, count - 1, batch_size):
            yield order[start : start + batch_size]
