"""FedCLIP: an attention adapter on the frozen encoder, averaged over the devices.

Lu, Hu, Wang, Xie 2023, arXiv 2302.13485. The defaults follow the reference code
(microsoft/PersonalizedFL at 441670e, fedclip/methods/fed_at_clip.py). That code differs from the
text of the paper: the loss is the symmetric contrastive loss within a batch, Adam has coupled
weight decay and begins with zero moments every round, and every device has the same weight. Each
deviation is an option.

    adapted = softmax(W2 tanh(W1 f + b1) + b2) * f        f raw; logits = scale * cos(adapted, t_c)

A device sends `weight * (trained - received)`. The coordinator adds the weighted mean change to the
model, which gives the average of the trained adapters.

Options: `loss` (contrastive, multi-positive, cross-entropy) and those of learning/options.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedclip_edge.learning.kinds import averaged
from fedclip_edge.learning.operations import Array, Operations, cosine_logits
from fedclip_edge.learning.options import Training
from fedclip_edge.records import F32, Arrays, ClassTexts

# Names in the reference's state_dict: an nn.Sequential of Linear, Tanh, Linear, Softmax.
W1, B1, W2, B2 = "0.weight", "0.bias", "2.weight", "2.bias"


@dataclass(frozen=True)
class Options(Training):
    """Options, with the defaults of the reference code.

    The constructor raises ValueError with the option's name and range.
    """

    loss: Literal["contrastive", "multi-positive", "cross-entropy"] = "contrastive"


def initial_parameters(classes: ClassTexts, dim: int, seed: int, options: Options) -> Arrays:
    """Draw the gate as torch.nn.Linear does: uniform within 1/sqrt(D), in float32."""
    random = np.random.default_rng([seed, dim])
    bound = 1 / np.sqrt(dim)

    def draw(*shape: int) -> F32:
        return random.uniform(-bound, bound, shape).astype(np.float32)

    return {W1: draw(dim, dim), B1: draw(dim), W2: draw(dim, dim), B2: draw(dim)}


def attend(ops: Operations, terms: Mapping[str, Array], features: Array) -> Array:
    """Gate raw features float32 (N, D); returns float32 (N, D), not normalised.

    The gate is computed from the raw feature and applied before normalisation. Its gradients scale
    with the norm of the feature, so unit features would make them too small.
    """
    hidden = ops.tanh(ops.linear(features, terms[W1], terms[B1]))  # (N, D)
    gate = ops.softmax(ops.linear(hidden, terms[W2], terms[B2]))  # (N, D), rows sum to 1
    return gate * features


def logits(
    ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
) -> Array:
    """Compute scaled cosines (N, C) of gated features; raw features (N, D), texts (C, D)."""
    return cosine_logits(ops, attend(ops, terms, features), texts, scale)


METHOD = averaged("fedclip", Options, initial_parameters, logits)
