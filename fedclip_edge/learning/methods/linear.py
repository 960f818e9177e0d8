"""A linear probe that begins at the class texts, averaged over the devices.

This is the linear probe on frozen features of Radford et al. 2021 (arXiv 2103.00020, section 3.2).
It begins at the texts as in LP++ (Huang et al. 2024, "LP++: A Surprisingly Strong Linear Probe for
Few-Shot CLIP", arXiv 2404.02285), but without the blend of two heads. The average is that of FedAvg
(McMahan et al. 2017, arXiv 1602.05629).

    logits = scale * f / |f| . w_c            w_c = t_c at the start, C * D numbers in all

The first model is zero-shot CLIP. The loss is cross-entropy over all classes of the run. On a
device without pictures of class c, training pushes w_c away from the features; only the average
over the devices counters this.

Options: those of learning/options.py with different defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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


def initial_parameters(classes: ClassTexts, dim: int, seed: int, options: Options) -> Arrays:
    """Make the head from the class texts: `weight` float32 (C, D)."""
    return {"weight": classes.vectors.copy()}


def logits(
    ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
) -> Array:
    """Compute scaled products (N, C) of normalised features with the head; texts are unused."""
    return cosine_logits(ops, features, terms["weight"], scale)


METHOD = averaged("linear", Options, initial_parameters, logits, per_class=("weight",))
