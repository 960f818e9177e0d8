"""A low-rank residual map of the feature, averaged over the devices.

It has the form of LoRA (Hu et al. 2021, arXiv 2106.09685), but maps the joint image-text space
instead of the encoder's weights, so that it runs on cached features.

    logits = scale * cos(f + B A f, t_c)            A (r, D), B (D, r), f raw

B begins at zero, so the first model is zero-shot CLIP. The loss is cross-entropy. A and B are
averaged separately, not their product. All devices begin every round at the same A and B, so they
stay close enough for that (FedAvg, arXiv 1602.05629).

Options: `rank`, and those of learning/options.py with different defaults.
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
from fedclip_edge.records import ClassTexts, Features, Layout, Model, Plan, Scalar, Update

if TYPE_CHECKING:
    from torch import Tensor

TRAITS = Traits(is_averaged=True)


@dataclass(frozen=True)
class Options(Training):
    """Options, with defaults chosen on validation pictures (docs/explanation/methods.md).

    The constructor raises ValueError with the option's name and range.
    """

    lr: float = 1e-3
    beta2: float = 0.999
    weight_decay: float = 0.0
    rank: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"rank: expected 1 or more, got {self.rank}")


def check_options(options: Mapping[str, Scalar]) -> Options:
    """Parse the options; raises ConfigError for an unknown option or a value out of range."""
    return read_table(Options, options, "lowrank options")


def initial(
    classes: ClassTexts, dim: int, seed: int, options: Mapping[str, Scalar] = NO_OPTIONS
) -> Model:
    """Draw A (r, D) as torch.nn.Linear does, and set B (D, r) to zero, both as in LoRA."""
    rank = min(check_options(options).rank, dim)
    bound = 1 / np.sqrt(dim)
    down = np.random.default_rng([seed, dim]).uniform(-bound, bound, (rank, dim))
    terms = {"a": down.astype(np.float32), "b": np.zeros((dim, rank), np.float32)}
    return Model("lowrank", 0, terms)


def layout(model: Model) -> Layout:
    """Return the shapes: both factors are trained and in the update."""
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
    """Train the map on the device's raw features with a fresh optimizer."""
    from fedclip_edge.learning.training import change, classification

    loss = classification(logits, classes)
    options = check_options(plan.options)
    return change(model.parameters, features, loss, options, seed, model.round), state


def combine(model: Model, total: Total, state: State) -> tuple[Model, State]:
    """Apply the plan's strategy to the deltas."""
    return strategies.step(model, total, state)


def logits(terms: Mapping[str, Tensor], features: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Compute scaled cosines (N, C) of mapped features; raw features (N, D), texts (C, D)."""
    from torch.nn.functional import linear

    from fedclip_edge.learning import adapter

    mapped = features + linear(linear(features, terms["a"]), terms["b"])  # (N, D)
    return adapter.logits(mapped, texts, scale)
