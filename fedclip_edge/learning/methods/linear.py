"""A linear probe that begins at the class texts, averaged over the devices.

This is the linear probe on frozen features of Radford et al. 2021 (arXiv 2103.00020, section 3.2).
It begins at the texts as in LP++ (Huang et al. 2024, "LP++: A Surprisingly Strong Linear Probe for
Few-Shot CLIP", arXiv 2404.02285), but without the blend of two heads. The average is that of FedAvg
(McMahan et al. 2017, arXiv 1602.05629).

    logits = scale * f / |f| . w_c            w_c = t_c at the start, C * D numbers in all

The first model is zero-shot CLIP. The loss is cross-entropy over all classes of the run. On a
device without pictures of class c, training pushes w_c away from the features; only the average
over the devices counters this.

Options: those of learning/options.py with different defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


def check_options(options: Mapping[str, Scalar]) -> Options:
    """Parse the options; raises ConfigError for an unknown option or a value out of range."""
    return read_table(Options, options, "linear options")


def initial(
    classes: ClassTexts, dim: int, seed: int, options: Mapping[str, Scalar] = NO_OPTIONS
) -> Model:
    """Make the head from the class texts: `weight` float32 (C, D)."""
    return Model("linear", 0, {"weight": classes.vectors.copy()})


def layout(model: Model) -> Layout:
    """Return the shapes: the head is trained and in the update."""
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
    """Train the head on the device's features with a fresh optimizer."""
    from fedclip_edge.learning.training import change, classification

    loss = classification(logits, classes)
    options = check_options(plan.options)
    return change(model.parameters, features, loss, options, seed, model.round), state


def combine(model: Model, total: Total, state: State) -> tuple[Model, State]:
    """Apply the plan's strategy to the deltas."""
    return strategies.step(model, total, state)


def logits(terms: Mapping[str, Tensor], features: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Compute scaled products (N, C) of normalised features with the head; texts are unused."""
    from fedclip_edge.learning import adapter

    return adapter.logits(features, terms["weight"], scale)
