"""A scale and a bias for each class, averaged over the devices: a method outside the package.

Alexandari, Kundaje, Shrikumar 2020, "Maximum Likelihood with Bias-Corrected Calibration is
Hard-To-Beat at Label Shift Adaptation", arXiv 1901.06852, where it is called bias-corrected
temperature scaling.

    logits = scale * exp(s) * (cos(f, t_c) + b_c)          s = 0, b = 0 at the start: C + 1 numbers

The first model is zero-shot CLIP. The loss is cross-entropy over all classes of the run.

Options: those of learning/options.py with other defaults.
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
    """The constructor raises ValueError with the option's name and range."""

    lr: float = 1e-2
    beta2: float = 0.999
    weight_decay: float = 0.0


def initial_parameters(classes: ClassTexts, dim: int, seed: int, options: Options) -> Arrays:
    """Make the parameters, float32 zeros: `bias` (C,) and `log_scale` (1,)."""
    bias = np.zeros(len(classes.names), np.float32)
    return {"bias": bias, "log_scale": np.zeros(1, np.float32)}


def logits(
    ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
) -> Array:
    """Compute scaled and moved cosines (N, C) of raw features (N, D) and unit texts (C, D)."""
    cosines = cosine_logits(ops, features, texts, 1.0)  # (N, C)
    return scale * ops.exp(terms["log_scale"]) * (cosines + terms["bias"])


METHOD = averaged("class-bias", Options, initial_parameters, logits, per_class=("bias",))


if __name__ == "__main__":
    from drawn_fleet import compare

    from fedclip_edge.learning import methods

    methods.register(METHOD)
    compare("zeroshot,class-bias,class-bias:local,linear", rounds=10)
