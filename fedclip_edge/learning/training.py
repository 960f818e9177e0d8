"""The seeded mini-batch loop of all methods trained by gradients, and the resulting update.

`proximal_mu` is FedProx: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020, "Federated Optimization
in Heterogeneous Networks", arXiv 1812.06127. It adds mu / 2 |w - received|^2 to the loss.

Laws:

- The order of the pictures depends on the seed alone, and nothing else is random.
- With one torch thread the same seed gives the same bytes on the same kind of machine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import losses
from fedclip_edge.learning.method import LocalTask, Logits
from fedclip_edge.learning.optimizers import Adam, Optimizer, Sgd
from fedclip_edge.learning.options import Training
from fedclip_edge.learning.torch_operations import TORCH
from fedclip_edge.records import F32, Arrays, ClassTexts, Features, Update

# Takes the trained parameters, raw features (B, D) and labels (B,) of a batch; returns a scalar.
Loss = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]
NO_TERMS: Arrays = MappingProxyType({})


def use_one_thread() -> None:
    """Limit torch to one thread in this process.

    Sums then have a fixed order, so that a seed gives the same result on the same kind of box.
    """
    torch.set_num_threads(1)


def change(
    task: LocalTask, logits: Logits, options: Training, fixed: Collection[str] = ()
) -> Update:
    """Train for one round and make the update `weight * (trained - received)`.

    The delta has the names and shapes of the model's parameters, without those that `fixed` names.
    `changed` explains the weight, and raises ConfigError if training diverges.
    """
    received = {n: term for n, term in task.model.parameters.items() if n not in fixed}
    constant = {n: term for n, term in task.model.parameters.items() if n in fixed}
    loss = objective(logits, task.classes, options.loss, constant)
    trained = train(received, task.train, loss, options, task.seed)
    return changed(task, trained, options)


def changed(task: LocalTask, trained: Mapping[str, F32], options: Training) -> Update:
    """Make the update `weight * (trained - received)`; the arrays `trained` become its delta.

    `task` has the received model. The weight is 1, or the number of pictures (at least 1) if
    `options.weighting` is "pictures". Raises ConfigError if a trained parameter is not finite.
    """
    weight = max(1, len(task.train)) if options.weighting == "pictures" else 1
    for name, term in trained.items():  # in place: a copy would be as large as the model
        np.subtract(term, task.model.parameters[name], out=term)
        if weight != 1:
            np.multiply(term, weight, out=term)
    try:
        return Update("sum", weight, trained)  # checks that all values are finite
    except ValueError as error:
        raise ConfigError(
            f"training diverged in round {task.model.round + 1} (a parameter is NaN or infinite); "
            "lower lr or weight_decay under [plan.options]"
        ) from error


def objective(
    logits: Logits, classes: ClassTexts, loss: str = "cross-entropy", fixed: Arrays = NO_TERMS
) -> Loss:
    """Make the function that training minimises: the loss named `loss` of a method's logits.

    `fixed` are the parameters of the model that are not trained. Raises KeyError, when called, for
    an unknown loss.
    """
    texts, scale = torch.from_numpy(classes.vectors), classes.logit_scale  # (C, D)
    constant = {name: torch.tensor(term) for name, term in fixed.items()}

    def value(terms: Mapping[str, Tensor], vectors: Tensor, labels: Tensor) -> Tensor:
        shown = losses.facing(loss, texts, labels)
        found = logits(TORCH, {**constant, **terms}, vectors, shown, scale)
        return losses.on_texts(loss, found, labels)

    return value


def train(
    terms: Arrays,
    features: Features,
    loss: Loss,
    options: Training,
    seed: int,
) -> dict[str, F32]:
    """Train parameters for `options.epochs` epochs and return them as float32 arrays.

    The result has the names and shapes of `terms`, which are not changed.
    """
    trained = {name: torch.tensor(term, requires_grad=True) for name, term in terms.items()}
    parameters = list(trained.values())
    vectors = torch.from_numpy(features.vectors)  # (N, D)
    labels = torch.from_numpy(features.labels)  # (N,)
    optimizer = _optimizer(parameters, options)
    pulled = _pulled(terms, parameters, options.proximal_mu)
    for batch in batches(len(features), options.batch_size, options.epochs, seed):
        value = loss(trained, vectors[batch], labels[batch])
        gradients = torch.autograd.grad(value, parameters)
        optimizer.step(pulled(gradients))
    return {name: term.detach().numpy() for name, term in trained.items()}


def _pulled(
    terms: Arrays, parameters: Sequence[Tensor], proximal_mu: float
) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """Make the function that adds the proximal term to the gradients."""
    if not proximal_mu:
        return lambda gradients: gradients
    starts = [torch.tensor(term) for term in terms.values()]

    @torch.no_grad()
    def pull(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        return [
            gradient + proximal_mu * (own - start)
            for gradient, own, start in zip(gradients, parameters, starts, strict=True)
        ]

    return pull


def _optimizer(parameters: Sequence[Tensor], options: Training) -> Optimizer:
    if options.optimizer == "sgd":
        return Sgd(parameters, options.lr, options.weight_decay)
    return Adam(
        parameters,
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        weight_decay=options.weight_decay,
        decoupled=options.optimizer == "adamw",
    )


def batches(count: int, batch_size: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Yield the picture indices of each batch, int64 (B,), in a new random order each epoch.

    B is `batch_size`; the last batch of an epoch may be smaller. A batch of one is skipped, because
    it has no negatives (FedCLIP's reference skips it as well).
    """
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        order = torch.from_numpy(random.permutation(count))
        for start in range(0, count - 1, batch_size):
            yield order[start : start + batch_size]
