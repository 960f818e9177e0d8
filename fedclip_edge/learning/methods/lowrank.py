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

import numpy as np

from fedclip_edge.learning.kinds import averaged
from fedclip_edge.learning.operations import Array, Operations, cosine_logits
from fedclip_edge.learning.options import Training
from fedclip_edge.records import Arrays, ClassTexts


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


def initial_parameters(classes: ClassTexts, dim: int, seed: int, options: Options) -> Arrays:
    """Draw A (r, D) as torch.nn.Linear does, and set B (D, r) to zero, both as in LoRA."""
    rank = min(options.rank, dim)
    bound = 1 / np.sqrt(dim)
    down = np.random.default_rng([seed, dim]).uniform(-bound, bound, (rank, dim))
    return {"a": down.astype(np.float32), "b": np.zeros((dim, rank), np.float32)}


def logits(
    ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
) -> Array:
    """Compute scaled cosines (N, C) of mapped features; raw features (N, D), texts (C, D)."""
    mapped = features + ops.linear(ops.linear(features, terms["a"]), terms["b"])  # (N, D)
    return cosine_logits(ops, mapped, texts, scale)


METHOD = averaged("lowrank", Options, initial_parameters, logits)
