"""A scale and a bias for each class, averaged over the devices: a method outside the package.

Alexandari, Kundaje, Shrikumar 2020, "Maximum Likelihood with Bias-Corrected Calibration is
Hard-To-Beat at Label Shift Adaptation", arXiv 1901.06852, where it is called bias-corrected
temperature scaling.

    logits = scale * exp(s) * (cos(f, t_c) + b_c)          s = 0, b = 0 at the start: C + 1 numbers

The first model is zero-shot CLIP. The loss is cross-entropy over all classes of the run.

Options: those of learning/options.py with other defaults.
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

NAME = "class-bias"
TRAITS = Traits(is_averaged=True)


@dataclass(frozen=True)
class Options(Training):
    """The constructor raises ValueError with the option's name and range."""

    lr: float = 1e-2
    beta2: float = 0.999
    weight_decay: float = 0.0


def check_options(options: Mapping[str, Scalar]) -> Options:
    """Parse the options; raises ConfigError for an unknown option or a value out of range."""
    return read_table(Options, options, f"{NAME} options")


def initial(
    classes: ClassTexts, dim: int, seed: int, options: Mapping[str, Scalar] = NO_OPTIONS
) -> Model:
    """Make the parameters, float32 zeros: `bias` (C,) and `log_scale` (1,)."""
    bias = np.zeros(len(classes.names), np.float32)
    return Model(NAME, 0, {"bias": bias, "log_scale": np.zeros(1, np.float32)})


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
    """Train the parameters on the device's raw features with a fresh optimizer."""
    from fedclip_edge.learning.training import change, classification

    loss = classification(logits, classes)
    options = check_options(plan.options)
    return change(model.parameters, features, loss, options, seed, model.round), state


def combine(model: Model, total: Total, state: State) -> tuple[Model, State]:
    """Apply the plan's strategy to the deltas."""
    return strategies.step(model, total, state)


def logits(terms: Mapping[str, Tensor], features: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Compute scaled and moved cosines (N, C) of raw features (N, D) and unit texts (C, D)."""
    from fedclip_edge.learning import adapter

    cosines = adapter.logits(features, texts, 1.0)  # (N, C)
    return scale * terms["log_scale"].exp() * (cosines + terms["bias"])


if __name__ == "__main__":
    import own_method  # this file: a method is a module
    from drawn_fleet import compare

    from fedclip_edge.learning import methods

    methods.register(NAME, own_method)
    compare("zeroshot,class-bias,class-bias:local,linear", rounds=10)
