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
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedclip_edge.config import read_table
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.records import F32, ClassTexts, Features, Model, Plan, Scalar, Terms, Update


@dataclass(frozen=True)
class Options:
    """Local training; the defaults are the reference's."""

    loss: Literal["contrastive", "multi-positive", "cross-entropy"] = "contrastive"
    optimizer: Literal["adam", "adamw"] = "adam"  # adam couples the weight decay, adamw does not
    lr: float = 5e-5
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2
    batch_size: int = 32
    epochs: int = 1
    weighting: Literal["uniform", "pictures"] = "uniform"

    def __post_init__(self) -> None:
        for name in ("lr", "eps"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected above 0 up to 1, got {getattr(self, name)}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError("beta1, beta2: expected 0 up to, but not including, 1")
        if not 0 <= self.weight_decay <= 10:
            raise ValueError(f"weight_decay: expected 0 to 10, got {self.weight_decay}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size: expected 2 or more, got {self.batch_size}")
        if self.epochs < 1:
            raise ValueError(f"epochs: expected 1 or more, got {self.epochs}")


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
    weight = len(features) if options.weighting == "pictures" else 1
    terms = {name: weight * (trained[name] - model.terms[name]) for name in model.terms}
    return Update("sum", weight, terms), state


def combine(model: Model, total: ExactSum, state: Terms) -> tuple[Model, Terms]:
    """The model plus the weighted mean change."""
    change = total.mean()
    terms = {name: term + change[name] for name, term in model.terms.items()}
    return Model("fedclip", model.round + 1, terms), state


def predict(model: Model, vectors: F32, classes: ClassTexts) -> F32:
    """Logits (N, C) of raw features (N, D)."""
    import torch

    from fedclip_edge.learning.adapter import attend, logits

    with torch.inference_mode():
        terms = {name: torch.from_numpy(term) for name, term in model.terms.items()}
        adapted = attend(terms, torch.from_numpy(vectors))
        result: F32 = logits(
            adapted, torch.from_numpy(classes.vectors), classes.logit_scale
        ).numpy()
    return result
