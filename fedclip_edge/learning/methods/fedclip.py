"""FedCLIP: an attention adapter on the frozen encoder, averaged over the devices.

Lu, Hu, Wang, Xie 2023, arXiv 2302.13485. The defaults follow the reference code
(microsoft/PersonalizedFL at 441670e, fedclip/methods/fed_at_clip.py). That code differs from the
text of the paper: the loss is the symmetric contrastive loss within a batch, Adam has coupled
weight decay and begins with zero moments every round, and every device has the same weight. Each
deviation is an option.

    adapted = softmax(W2 tanh(W1 f + b1) + b2) * f        f raw; logits = scale * cos(adapted, t_c)

A device sends `weight * (trained - received)`. The coordinator adds the weighted mean change to the
model, which gives the average of the trained adapters.

Options: `loss` (contrastive, multi-positive, cross-entropy) and those of learning/options.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedclip_edge.config import read_table
from fedclip_edge.learning import strategies
from fedclip_edge.learning.method import NO_OPTIONS, Traits
from fedclip_edge.learning.options import Training
from fedclip_edge.learning.strategy import State, Total
from fedclip_edge.records import (
    F32,
    ClassTexts,
    Features,
    Layout,
    Model,
    Plan,
    Scalar,
    Update,
)

if TYPE_CHECKING:
    from torch import Tensor

    from fedclip_edge.learning.training import Loss

TRAITS = Traits(is_averaged=True)


@dataclass(frozen=True)
class Options(Training):
    """Options, with the defaults of the reference code.

    The constructor raises ValueError with the option's name and range.
    """

    loss: Literal["contrastive", "multi-positive", "cross-entropy"] = "contrastive"


def check_options(options: Mapping[str, Scalar]) -> Options:
    """Parse the options; raises ConfigError for an unknown option or a value out of range."""
    return read_table(Options, options, "fedclip options")


def initial(
    classes: ClassTexts, dim: int, seed: int, options: Mapping[str, Scalar] = NO_OPTIONS
) -> Model:
    """Draw the gate as torch.nn.Linear does: uniform within 1/sqrt(D), in float32."""
    random = np.random.default_rng([seed, dim])
    bound = 1 / np.sqrt(dim)

    def draw(*shape: int) -> F32:
        return random.uniform(-bound, bound, shape).astype(np.float32)

    terms = {
        "0.weight": draw(dim, dim),
        "0.bias": draw(dim),
        "2.weight": draw(dim, dim),
        "2.bias": draw(dim),
    }
    return Model("fedclip", 0, terms)


def layout(model: Model) -> Layout:
    """Return the shapes: every parameter is trained and in the update."""
    shapes = {name: term.shape for name, term in model.parameters.items()}
    return Layout(shapes, shapes)


def fit(
    model: Model,
    features: Features,
    validation: Features,
    classes: ClassTexts,
    plan: Plan,
    state: State,
    seed: int,
) -> tuple[Update, State]:
    """Train the gate on the device's raw features with a fresh optimizer."""
    from fedclip_edge.learning.training import change

    options = check_options(plan.options)
    loss = objective(classes, options)
    return change(model.parameters, features, loss, options, seed, model.round), state


def objective(classes: ClassTexts, options: Options) -> Loss:
    """Make the loss that `fit` minimises: parameters, raw features (B, D), labels (B,) -> scalar.

    The parameters and features are float32, the labels int64.
    """
    import torch

    from fedclip_edge.learning import losses

    texts, scale = torch.from_numpy(classes.vectors), classes.logit_scale  # (C, D)

    def loss(terms: Mapping[str, Tensor], vectors: Tensor, labels: Tensor) -> Tensor:
        scores = logits(terms, vectors, losses.facing(options.loss, texts, labels), scale)
        return losses.on_texts(options.loss, scores, labels)

    return loss


def combine(model: Model, total: Total, state: State) -> tuple[Model, State]:
    """Apply the plan's strategy to the deltas."""
    return strategies.step(model, total, state)


def logits(terms: Mapping[str, Tensor], features: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Compute scaled cosines (N, C) of gated features; raw features (N, D), texts (C, D)."""
    from fedclip_edge.learning.adapter import adapted_logits

    return adapted_logits(terms, features, texts, scale)
