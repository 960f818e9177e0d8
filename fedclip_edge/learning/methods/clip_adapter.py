"""CLIP-Adapter: a bottleneck network whose output is blended into the feature.

Gao et al. 2021, "CLIP-Adapter: Better Vision-Language Models with Feature Adapters",
arXiv 2110.04544; its image adapter (reference code gaopengcuhk/CLIP-Adapter, clip_adapter.py).

    a(f)   = relu(W2 relu(W1 f))                 W1 (H, D), W2 (D, H), no biases, H = D / reduction
    logits = scale * cos(ratio a(f) + (1 - ratio) f, t_c)                          f raw

The adapter is trained with cross-entropy, and a strategy averages it over the devices. Its weights
begin as in torch.nn.Linear, so the first model is near zero-shot CLIP but not equal to it.

Options: `reduction` and `ratio` (the reference's alpha), and those of learning/options.py with
different defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

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

TRAITS = Traits(is_averaged=True)
RATIO = "ratio"  # a parameter, so that `logits` gets it; it is not trained and not sent


@dataclass(frozen=True)
class Options(Training):
    """Options; the constructor raises ValueError with the option's name and range.

    The defaults of reduction and ratio are the reference's. Those of lr, beta2 and weight_decay
    were chosen on validation pictures.
    """

    lr: float = 1e-3
    beta2: float = 0.999
    weight_decay: float = 0.0
    reduction: int = 4
    ratio: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction < 1:
            raise ValueError(f"reduction: expected 1 or more, got {self.reduction}")
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio: expected between 0 and 1, got {self.ratio}")


def check_options(options: Mapping[str, Scalar]) -> Options:
    """Parse the options; raises ConfigError for an unknown option or a value out of range."""
    return read_table(Options, options, "clip-adapter options")


def initial(
    classes: ClassTexts, dim: int, seed: int, options: Mapping[str, Scalar] = NO_OPTIONS
) -> Model:
    """Draw both layers as torch.nn.Linear does: uniform within 1/sqrt(inputs), in float32."""
    chosen = check_options(options)
    random = np.random.default_rng([seed, dim])
    width = max(1, dim // chosen.reduction)  # H

    def draw(outputs: int, inputs: int) -> F32:
        bound = 1 / np.sqrt(inputs)
        return random.uniform(-bound, bound, (outputs, inputs)).astype(np.float32)

    terms = {"down.weight": draw(width, dim), "up.weight": draw(dim, width)}
    return Model("clip-adapter", 0, {**terms, RATIO: np.array(chosen.ratio, np.float32)})


def layout(model: Model) -> Layout:
    """Return the shapes: a model has both layers and the ratio, an update both layers."""
    shapes = {name: term.shape for name, term in model.parameters.items()}
    return Layout(shapes, {name: shape for name, shape in shapes.items() if name != RATIO})


def fit(
    model: Model,
    features: Features,
    validation: Features,
    classes: ClassTexts,
    plan: Plan,
    state: State,
    seed: int,
) -> tuple[Update, State]:
    """Train the adapter on the device's raw features with a fresh optimizer."""
    from fedclip_edge.learning.training import change, classification

    layers = {name: term for name, term in model.parameters.items() if name != RATIO}
    loss = classification(logits, classes, {RATIO: model.parameters[RATIO]})
    options = check_options(plan.options)
    return change(layers, features, loss, options, seed, model.round), state


def combine(model: Model, total: Total, state: State) -> tuple[Model, State]:
    """Apply the plan's strategy to the deltas."""
    return strategies.step(model, total, state)


def logits(terms: Mapping[str, Tensor], features: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Compute scaled cosines (N, C) of blended features; raw features (N, D), texts (C, D)."""
    from torch.nn.functional import linear, relu

    from fedclip_edge.learning import adapter

    hidden = relu(linear(features, terms["down.weight"]))  # (N, H)
    adapted = relu(linear(hidden, terms["up.weight"]))  # (N, D)
    blended = terms[RATIO] * adapted + (1 - terms[RATIO]) * features
    return adapter.logits(blended, texts, scale)
