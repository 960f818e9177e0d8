"""Zero-shot CLIP: the cosine to each class text, nothing trained. The line beside every result.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
arXiv 2103.00020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fedclip_edge.config import read_table
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.records import F32, ClassTexts, Features, Model, Plan, Scalar, Terms, Update


@dataclass(frozen=True)
class Options:
    """It has none."""


def check_options(options: Mapping[str, Scalar]) -> Options:
    """Raises ConfigError for any option."""
    return read_table(Options, options, "zeroshot options")


def initial(classes: ClassTexts, dim: int, seed: int) -> Model:
    """A model without terms."""
    return Model("zeroshot", 0, {})


def fit(
    model: Model, features: Features, classes: ClassTexts, plan: Plan, state: Terms, seed: int
) -> tuple[Update, Terms]:
    """An update without terms."""
    return Update("sum", 1, {}), state


def combine(model: Model, total: ExactSum, state: Terms) -> tuple[Model, Terms]:
    """The same model, one round on."""
    return replace(model, round=model.round + 1), state


def predict(model: Model, vectors: F32, classes: ClassTexts) -> F32:
    """Logits (N, C) of raw features (N, D)."""
    import torch

    from fedclip_edge.learning.adapter import logits

    texts = torch.from_numpy(classes.vectors)
    result: F32 = logits(torch.from_numpy(vectors), texts, classes.logit_scale).numpy()
    return result
