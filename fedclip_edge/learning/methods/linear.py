"""A linear probe that begins at the class texts, averaged over the devices.

The linear probe on frozen features of Radford et al. 2021 (arXiv 2103.00020, section 3.2), begun at
the texts as in LP++: Huang et al. 2024, "LP++: A Surprisingly Strong Linear Probe for Few-Shot
CLIP", arXiv 2404.02285, without its blend of two heads; the average is FedAvg's (McMahan et al.
2017, arXiv 1602.05629).

    logits = scale * f / |f| . w_c            w_c = t_c at the start, C * D numbers in all

At the start it is zero-shot CLIP. Trained with cross-entropy over all classes of the run, so a class
that a device does not have is pushed away there; the average is what holds it.

Options: those of learning/options.py, with defaults of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedclip_edge.config import read_table
from fedclip_edge.learning import strategies
from fedclip_edge.learning.method import NO_OPTIONS, NO_TERMS, Traits
from fedclip_edge.learning.options import Training
from fedclip_edge.learning.strategy import State, Total
from fedclip_edge.records import Arrays, ClassTexts, Features, Layout, Model, Plan, Scalar, Update

if TYPE_CHECKING:
    from torch import Tensor

TRAITS = Traits(is_averaged=True)


@dataclass(frozen=True)
class Options(Training):
    """Chosen on validation pictures (docs/methods.md)."""

    lr: float = 1e-3
    beta2: float = 0.999
    weight_decay: float = 0.0


def check_options(options: Mapping[str, Scalar]) -> Options:
    """Raises ConfigError for an unknown option or a value out of range."""
    return read_table(Options, options, "linear options")


def initial(
    classes: ClassTexts, dim: int, seed: int, options: Mapping[str, Scalar] = NO_OPTIONS
) -> Model:
    """The class texts."""
    return Model("linear", 0, {"weight": classes.vectors.copy()})


def layout(model: Model) -> Layout:
    """The head is trained, and sent."""
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
    drift: Arrays = NO_TERMS,
) -> tuple[Update, State]:
    """Trains the head on the device's features, from a fresh optimiser."""
    from fedclip_edge.learning.training import change, classification

    loss = classification(logits, classes)
    options = check_options(plan.options)
    return change(model.parameters, features, loss, options, seed, model.round, drift), state


def combine(model: Model, total: Total, state: State) -> tuple[Model, State]:
    """What the strategy makes of the changes."""
    return strategies.step(model, total, state)


def logits(terms: Mapping[str, Tensor], features: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Scaled products (N, C) of unit features with the head; it stands in the texts' place."""
    from fedclip_edge.learning import adapter

    return adapter.logits(features, terms["weight"], scale)
