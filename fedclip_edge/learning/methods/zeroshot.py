"""Zero-shot CLIP: the cosine to each class text, without training. The baseline for all methods.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
arXiv 2103.00020.

    logits = scale * cos(f, t_c)

It has no options and sends an empty update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedclip_edge.config import read_table
from fedclip_edge.learning.method import NO_OPTIONS, Traits
from fedclip_edge.learning.strategy import State, Total
from fedclip_edge.records import ClassTexts, Features, Layout, Model, Plan, Scalar, Update

if TYPE_CHECKING:
    from torch import Tensor

TRAITS = Traits(rounds=1)
MODEL = Model("zeroshot", 0, {})  # the only initial model


@dataclass(frozen=True)
class Options:
    """An empty set of options."""


def check_options(options: Mapping[str, Scalar]) -> Options:
    """Check that there are no options; raises ConfigError otherwise."""
    return read_table(Options, options, "zeroshot options")


def initial(
    classes: ClassTexts, dim: int, seed: int, options: Mapping[str, Scalar] = NO_OPTIONS
) -> Model:
    """Return a model without parameters; it ignores the options."""
    return MODEL


def layout(model: Model) -> Layout:
    """Return empty shapes."""
    return Layout({}, {})


def fit(
    model: Model,
    features: Features,
    validation: Features,
    classes: ClassTexts,
    plan: Plan,
    state: State,
    seed: int,
) -> tuple[Update, State]:
    """Return an empty update of weight 1."""
    return Update("sum", 1, {}), state


def combine(model: Model, total: Total, state: State) -> tuple[Model, State]:
    """Return the same model with the next round number."""
    return replace(model, round=model.round + 1), state


def logits(terms: Mapping[str, Tensor], features: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Compute scaled cosines (N, C) of raw features (N, D) and unit texts (C, D)."""
    from fedclip_edge.learning import adapter

    return adapter.logits(features, texts, scale)
