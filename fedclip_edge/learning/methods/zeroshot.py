"""Zero-shot CLIP: the cosine to each class text, without training. The baseline for all methods.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
arXiv 2103.00020.

    logits = scale * cos(f, t_c)

It has no options and sends an empty update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedclip_edge.learning.kinds import untrained
from fedclip_edge.learning.operations import Array, Operations, cosine_logits
from fedclip_edge.records import Model


@dataclass(frozen=True)
class Options:
    """An empty set of options."""


def logits(
    ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
) -> Array:
    """Compute scaled cosines (N, C) of raw features (N, D) and unit texts (C, D)."""
    return cosine_logits(ops, features, texts, scale)


METHOD = untrained("zeroshot", Options, logits)
MODEL = Model(METHOD.name, 0, {})  # the only initial model
