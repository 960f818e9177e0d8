"""CLIP-Adapter: a bottleneck network whose output is blended into the feature.

Gao et al. 2021, "CLIP-Adapter: Better Vision-Language Models with Feature Adapters",
arXiv 2110.04544; its image adapter (reference code gaopengcuhk/CLIP-Adapter, clip_adapter.py).

    a(f)   = relu(W2 relu(W1 f))                 W1 (H, D), W2 (D, H), no biases, H = D / reduction
    logits = scale * cos(ratio a(f) + (1 - ratio) f, t_c)                          f raw

The adapter is trained with cross-entropy, and a strategy averages it over the devices. Its weights
begin as in torch.nn.Linear, so the first model is near zero-shot CLIP but not equal to it.

Options: `reduction` and `ratio` (the reference's alpha), and those of learning/options.py with
different defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedclip_edge.learning.kinds import averaged
from fedclip_edge.learning.operations import Array, Operations, cosine_logits
from fedclip_edge.learning.options import Training
from fedclip_edge.records import F32, Arrays, ClassTexts

RATIO = "ratio"  # a parameter, so that `logits` gets it; it is not trained and not sent


@dataclass(frozen=True)
class Options(Training):
    """Options; the constructor raises ValueError with the option's name and range.

    The defaults of reduction and ratio are the reference's. Those of lr, beta2 and weight_decay
    were chosen on validation pictures.
    """

    lr: float = 1e-3
    beta2: float = 0.999
    weight_decay: float = 0.0
    reduction: int = 4
    ratio: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction < 1:
            raise ValueError(f"reduction: expected 1 or more, got {self.reduction}")
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio: expected between 0 and 1, got {self.ratio}")


def initial_parameters(classes: ClassTexts, dim: int, seed: int, options: Options) -> Arrays:
    """Draw both layers as torch.nn.Linear does: uniform within 1/sqrt(inputs), in float32."""
    random = np.random.default_rng([seed, dim])
    width = max(1, dim // options.reduction)  # H

    def draw(outputs: int, inputs: int) -> F32:
        bound = 1 / np.sqrt(inputs)
        return random.uniform(-bound, bound, (outputs, inputs)).astype(np.float32)

    layers = {"down.weight": draw(width, dim), "up.weight": draw(dim, width)}
    return {**layers, RATIO: np.array(options.ratio, np.float32)}


def logits(
    ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
) -> Array:
    """Compute scaled cosines (N, C) of blended features; raw features (N, D), texts (C, D)."""
    hidden = ops.relu(ops.linear(features, terms["down.weight"]))  # (N, H)
    adapted = ops.relu(ops.linear(hidden, terms["up.weight"]))  # (N, D)
    blended = terms[RATIO] * adapted + (1 - terms[RATIO]) * features
    return cosine_logits(ops, blended, texts, scale)


METHOD = averaged("clip-adapter", Options, initial_parameters, logits, fixed=(RATIO,))
