"""FAA-CLIP: FedCLIP's gate with batch normalisation, without its adversarial part.

Wu, Desrosiers, Chaddad 2025, "FAA-CLIP: Federated Adversarial Adaptation of CLIP" (IEEE Internet of
Things Journal), arXiv 2503.05776; reference code AIPMLab/FAA-CLIP. The gate is its feature
adaptation module (learning/feature_attention.py); logits = scale * cos(adapted, t_c). The
loss is FedCLIP's contrastive loss within a batch, and every device has the same weight.

The paper adds half of a domain loss: a classifier of three layers learns to tell a device's
pictures from unlabelled pictures of the site that the model is for, and the gate learns to mislead
it. Each device needs the features of that site's pictures, and keeps its classifier from round to
round. Here no feature leaves its device, so this part is **left out**: the method does not adapt to
a domain that has no training device. It cannot be replaced by pictures of the device itself: those
are of one domain, so there is nothing to tell apart.

The reference keeps Adam's moments between rounds. Here a device begins with zero moments every
round, as in FedCLIP.

Options: `loss`, and those of learning/options.py; lr, beta2 and weight_decay are the reference's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fedclip_edge.learning import feature_attention
from fedclip_edge.learning.feature_attention import attend, initial_parameters
from fedclip_edge.learning.kinds import averaged
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.operations import Array, Operations, cosine_logits
from fedclip_edge.learning.options import Training
from fedclip_edge.records import Update


@dataclass(frozen=True)
class Options(Training):
    """Options, with the defaults of the reference code.

    The constructor raises ValueError with the option's name and range.
    """

    weight_decay: float = 0.02
    loss: Literal["contrastive", "multi-positive", "cross-entropy"] = "contrastive"


def fit(task: LocalTask, options: Options) -> Update:
    """Train the gate for one round; raises ConfigError if training diverges."""
    return feature_attention.fit(task, options)


def logits(
    ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
) -> Array:
    """Compute scaled cosines (N, C) of gated features; raw features (N, D), texts (C, D)."""
    return cosine_logits(ops, attend(ops, terms, features), texts, scale)


METHOD = replace(averaged("faa-clip", Options, initial_parameters, logits), fit=fit)
