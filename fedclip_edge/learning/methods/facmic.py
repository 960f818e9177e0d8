"""FACMIC: FedCLIP's gate with batch normalisation, and a loss that aligns the classes.

Wu, Desrosiers, Chaddad 2024, "FACMIC: Federated Adaptative CLIP Model for Medical Image
Classification" (MICCAI), arXiv 2410.14707; reference code AIPMLab/FACMIC. The gate is its feature
attention module (learning/feature_attention.py); logits = scale * cos(adapted, t_c). The loss of a
batch is FedCLIP's contrastive loss plus `transfer` times the local maximum mean discrepancy:

    LMMD = 1/|P| sum_{c in P} |sum_i s_ic phi(x_i) - sum_j u_jc phi(y_j)|^2

x_i are the batch's gated features and y_j the features of a batch of unlabelled pictures, not
gated; both have length 1. phi belongs to the sum of five Gaussian kernels exp(-d / (b 2^k)), k = -2
to 2, of the squared distance d, with b its mean over all pairs. s_ic is 1 over the number of
pictures of class c in the batch if i has the label c, else 0. u_jc is the probability of class c
for y_j after the gate, divided by its sum over j. P are the classes that occur among the labels of
the one batch and among the predictions for the other. s, u and b get no gradient.

In the paper the unlabelled pictures are those of the site that the model is for; every device has
them. Here no feature leaves its device. The unlabelled pictures are therefore the device's **own
validation pictures**, whose labels are not used. So the loss cannot adapt the model to a domain
without a training device; it keeps the gated features of a class close to the features that other
pictures of that class have without the gate. A device with fewer than two validation pictures
trains without it.

As in the reference, a device counts by its number of training pictures, and batches of both kinds
move the running statistics. Unlike there, Adam begins with zero moments every round, and an epoch
always has all training pictures.

Options: `transfer`, `loss`, and those of learning/options.py; their defaults are the reference's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from fedclip_edge.learning import feature_attention
from fedclip_edge.learning.feature_attention import attend, initial_parameters
from fedclip_edge.learning.kinds import averaged
from fedclip_edge.learning.method import LocalTask, Traits
from fedclip_edge.learning.operations import Array, Operations, cosine_logits
from fedclip_edge.learning.options import Training
from fedclip_edge.records import Update

if TYPE_CHECKING:
    from torch import Tensor

    from fedclip_edge.learning.feature_attention import Further, Gate

_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the bandwidth
_LEAST_BANDWIDTH = 1e-12  # for pictures that are all the same


@dataclass(frozen=True)
class Options(Training):
    """Options, with the defaults of the reference code.

    The constructor raises ValueError with the option's name and range.
    """

    weight_decay: float = 0.02
    weighting: Literal["uniform", "pictures"] = "pictures"
    loss: Literal["contrastive", "multi-positive", "cross-entropy"] = "contrastive"
    transfer: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.transfer <= 1e3:
            raise ValueError(f"transfer: expected 0 to 1e3, got {self.transfer}")


def fit(task: LocalTask, options: Options) -> Update:
    """Train the gate for one round; raises ConfigError if training diverges."""
    return feature_attention.fit(task, options, _alignment)


def discrepancy(source: Tensor, target: Tensor, labels: Tensor, shares: Tensor) -> Tensor:
    """Compute the LMMD, a scalar, of unit features `source` (B, D) and `target` (M, D).

    `labels` are int64 (B,), `shares` are the class probabilities of the target (M, C). The result
    is 0 if no class is in both.
    """
    import torch

    classes = shares.shape[1]
    both = torch.cat([source, target])  # (B + M, D)
    lengths = both.square().sum(dim=1)  # (B + M,)
    squared = (lengths[:, None] + lengths - 2 * both @ both.T).clamp_min(0)  # (B + M, B + M)
    pairs = len(both) * (len(both) - 1)
    bandwidth = (squared.detach().sum() / pairs).clamp_min(_LEAST_BANDWIDTH)
    kernel = torch.zeros_like(squared)
    for factor in _FACTORS:
        kernel = kernel + torch.exp(-squared / (bandwidth * factor))
    own = torch.nn.functional.one_hot(labels, classes).to(source.dtype)  # (B, C)
    predicted = torch.bincount(shares.argmax(dim=1), minlength=classes)  # (C,)
    here = own.any(dim=0) & (predicted > 0)  # (C,)
    own, theirs = own[:, here], shares[:, here].detach()  # (B, P), (M, P)
    weights = torch.cat([own / own.sum(dim=0), -theirs / theirs.sum(dim=0)])  # (B + M, P)
    return (weights * (kernel @ weights)).sum() / max(1, weights.shape[1])


def logits(
    ops: Operations, terms: Mapping[str, Array], features: Array, texts: Array, scale: float
) -> Array:
    """Compute scaled cosines (N, C) of gated features; raw features (N, D), texts (C, D)."""
    return cosine_logits(ops, attend(ops, terms, features), texts, scale)


def _alignment(task: LocalTask, options: Options, gate: Gate) -> Further | None:
    """Make the loss that compares a batch with batches of the device's validation pictures."""
    import torch

    from fedclip_edge.learning import training
    from fedclip_edge.learning.torch_operations import TORCH

    unlabelled = torch.from_numpy(task.validation.vectors)  # (M, D)
    if len(unlabelled) < 2 or not options.transfer:
        return None
    texts, scale = torch.from_numpy(task.classes.vectors), task.classes.logit_scale  # (C, D)
    batches = training.batches(len(unlabelled), options.batch_size, sys.maxsize, task.seed)

    def value(terms: Mapping[str, Tensor], gated: Tensor, labels: Tensor) -> Tensor:
        others = unlabelled[next(batches)]
        with torch.no_grad():
            scores = cosine_logits(TORCH, gate(terms, others), texts, scale)
        source, target = TORCH.normalize(gated), TORCH.normalize(others)
        return options.transfer * discrepancy(source, target, labels, TORCH.softmax(scores))

    return value


METHOD = replace(
    averaged("facmic", Options, initial_parameters, logits),
    fit=fit,
    traits=Traits(is_averaged=True, learns_from_validation=True),
)
