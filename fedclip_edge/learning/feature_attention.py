"""The feature attention module of FACMIC and FAA-CLIP: FedCLIP's gate with batch normalisation.

    z       = W1 f + b1                                      f raw, (N, D)
    h       = g (z - m) / sqrt(v + 1e-5) + o                 batch normalisation, per coordinate
    adapted = softmax(W2 leaky_relu(h) + b2) * f             leaky_relu has the slope 0.01 below 0

In training m and v are the mean and the variance of z over the batch, and the running mean and
variance move towards them by a tenth. Everywhere else m and v are the running ones, so that no
picture affects another one.

Laws:

- The running mean and variance are parameters without a gradient. Their change is sent, bounded and
  averaged like that of the trained parameters, as in the reference codes, which average the
  state_dict.
- The running variance counts as zero where a strategy or a codec has made it negative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.operations import Array, Operations, cosine_logits
from fedclip_edge.learning.options import Training
from fedclip_edge.records import F32, Arrays, ClassTexts, Update

if TYPE_CHECKING:
    from torch import Tensor

    # Takes the trained parameters and raw features (B, D) of a batch; returns the gated features,
    # and moves the running mean and variance.
    Gate = Callable[[Mapping[str, Tensor], Tensor], Tensor]
    # Takes the trained parameters, gated features (B, D) and labels (B,) of a batch.
    Further = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]

# Names in the references' state_dict: an nn.Sequential of Linear, BatchNorm1d, LeakyReLU, Linear,
# Softmax. `num_batches_tracked` is not here: it affects nothing.
W1, B1, W2, B2 = "0.weight", "0.bias", "3.weight", "3.bias"
GAIN, OFFSET, MEAN, VARIANCE = "1.weight", "1.bias", "1.running_mean", "1.running_var"
RUNNING = (MEAN, VARIANCE)
# Defaults of torch.nn.BatchNorm1d and torch.nn.LeakyReLU.
_EPSILON = 1e-5
_MOMENTUM = 0.1
_SLOPE = 0.01


def initial_parameters(classes: ClassTexts, dim: int, seed: int, options: Training) -> Arrays:
    """Draw both layers as torch.nn.Linear does; normalisation begins as in torch.nn.BatchNorm1d."""
    random = np.random.default_rng([seed, dim])
    bound = 1 / np.sqrt(dim)

    def draw(*shape: int) -> F32:
        return random.uniform(-bound, bound, shape).astype(np.float32)

    ones, zeros = np.ones(dim, np.float32), np.zeros(dim, np.float32)
    normalisation = {GAIN: ones, OFFSET: zeros, MEAN: zeros, VARIANCE: ones}
    return {W1: draw(dim, dim), B1: draw(dim), **normalisation, W2: draw(dim, dim), B2: draw(dim)}


def attend(ops: Operations, terms: Mapping[str, Array], features: Array) -> Array:
    """Gate raw features float32 (N, D) with the running statistics; returns float32 (N, D)."""
    centred = ops.linear(features, terms[W1], terms[B1]) - terms[MEAN]  # (N, D)
    return _gated(ops, terms, features, centred, ops.relu(terms[VARIANCE]))


def fit(
    task: LocalTask,
    options: Any,
    make_further: Callable[[LocalTask, Any, Gate], Further | None] | None = None,
) -> Update:
    """Train the module for one round; the loss is `options.loss` of the scaled cosines.

    `make_further` makes a loss that is added to it, or None for none. The delta has all parameters
    of the model. Raises ConfigError if training diverges.
    """
    import torch

    from fedclip_edge.learning import losses, training
    from fedclip_edge.learning.torch_operations import TORCH

    received = task.model.parameters
    mean, variance = (torch.tensor(received[name]) for name in RUNNING)  # copies
    texts, scale = torch.from_numpy(task.classes.vectors), task.classes.logit_scale  # (C, D)

    def gate(terms: Mapping[str, Tensor], vectors: Tensor) -> Tensor:
        hidden = TORCH.linear(vectors, terms[W1], terms[B1])  # (B, D)
        spread, middle = torch.var_mean(hidden, dim=0, correction=0)  # (D,) each
        with torch.no_grad():
            count = len(vectors)
            mean.lerp_(middle, _MOMENTUM)
            variance.lerp_(spread * count / (count - 1), _MOMENTUM)  # without bias, as in torch
        gated: Tensor = _gated(TORCH, terms, vectors, hidden - middle, spread)
        return gated

    further = make_further(task, options, gate) if make_further else None

    def loss(terms: Mapping[str, Tensor], vectors: Tensor, labels: Tensor) -> Tensor:
        gated = gate(terms, vectors)  # (B, D)
        shown = losses.facing(options.loss, texts, labels)
        scores = cosine_logits(TORCH, gated, shown, scale)
        value = losses.on_texts(options.loss, scores, labels)
        return value if further is None else value + further(terms, gated, labels)

    without = {name: term for name, term in received.items() if name not in RUNNING}
    trained = training.train(without, task.train, loss, options, task.seed)
    trained |= {MEAN: mean.numpy(), VARIANCE: variance.numpy()}
    return training.changed(task, trained, options)


def _gated(
    ops: Operations, terms: Mapping[str, Array], features: Array, centred: Array, variance: Array
) -> Array:
    """Normalise hidden values (N, D), already centred, by a variance (D,), and gate with them."""
    hidden = terms[GAIN] * centred / (variance + _EPSILON) ** 0.5 + terms[OFFSET]
    leaky = ops.relu(hidden) - _SLOPE * ops.relu(-hidden)
    return ops.softmax(ops.linear(leaky, terms[W2], terms[B2])) * features
