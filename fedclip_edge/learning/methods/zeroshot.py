"""Zero-shot CLIP: the cosine to each class text, nothing trained. The line beside every result.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
arXiv 2103.00020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedclip_edge.config import read_table
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.records import ClassTexts, Features, Model, Plan, Scalar, Terms, Update

if TYPE_CHECKING:
    from torch import Tensor

MODEL = Model("zeroshot", 0, {})  # there is no other


@dataclass(frozen=True)
class Options:
    """It has none."""


def check_options(options: Mapping[str, Scalar]) -> Options:
    """Raises ConfigError for any option."""
    return read_table(Options, options, "zeroshot options")


def initial(classes: ClassTexts, dim: int, seed: int) -> Model:
    """A model without terms."""
    return MODEL


def fit(
    model: Model, features: Features, classes: ClassTexts, plan: Plan, state: Terms, seed: int
) -> tuple[Update, Terms]:
    """An update without terms."""
    return Update("sum", 1, {}), state


def combine(model: Model, total: ExactSum, state: Terms) -> tuple[Model, Terms]:
    """The same model, one round on."""
    return replace(model, round=model.round + 1), state


def logits(terms: Mapping[str, Tensor], features: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Scaled cosines (N, C) of raw features (N, D) and unit texts (C, D)."""
    from fedclip_edge.learning import adapter

    return adapter.logits(features, texts, scale)
