"""FedCLIP: everything frozen but an attention adapter, averaged over the devices.

Lu, Hu, Wang, Xie 2023, arXiv 2302.13485. The defaults follow the reference code
(microsoft/PersonalizedFL at 441670e, fedclip/methods/fed_at_clip.py), which differs from the
paper's text in places: symmetric in-batch contrastive loss, Adam with coupled weight decay whose
moments start anew every round, every device weighing the same. Each deviation is an option.

A device sends `weight * (trained - received)`; the coordinator adds the weighted mean of these to
the model, which is the average of the trained adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fedclip_edge.config import read_table
from fedclip_edge.errors import ConfigError
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.options import Options
from fedclip_edge.records import F32, ClassTexts, Features, Model, Plan, Scalar, Terms, Update

if TYPE_CHECKING:
    from torch import Tensor


def check_options(options: Mapping[str, Scalar]) -> Options:
    """Raises ConfigError for an unknown option or a value out of range."""
    return read_table(Options, options, "fedclip options")


def initial(classes: ClassTexts, dim: int, seed: int) -> Model:
    """The gate as torch.nn.Linear would start it: uniform within 1/sqrt(D), in float32."""
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


def fit(
    model: Model, features: Features, classes: ClassTexts, plan: Plan, state: Terms, seed: int
) -> tuple[Update, Terms]:
    """Trains the gate on the device's raw features, from a fresh optimiser."""
    from fedclip_edge.learning.training import train

    options = check_options(plan.options)
    trained = train(model.terms, features, classes, options, seed)
    if not all(np.isfinite(term).all() for term in trained.values()):
        raise ConfigError(
            f"training diverged in round {model.round + 1}; lower lr or weight_decay under "
            "[plan.options]"
        )
    weight = len(features) if options.weighting == "pictures" else 1
    terms = {name: weight * (trained[name] - model.terms[name]) for name in model.terms}
    return Update("sum", weight, terms), state


def combine(model: Model, total: ExactSum, state: Terms) -> tuple[Model, Terms]:
    """The model plus the weighted mean change."""
    change = total.mean()
    terms = {name: term + change[name] for name, term in model.terms.items()}
    return Model("fedclip", model.round + 1, terms), state


def logits(terms: Mapping[str, Tensor], features: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Scaled cosines (N, C) of the gated features; raw features (N, D), unit texts (C, D)."""
    from fedclip_edge.learning.adapter import adapted_logits

    return adapted_logits(terms, features, texts, scale)
