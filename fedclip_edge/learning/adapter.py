"""The attention adapter of FedCLIP, and CLIP's logits as scaled cosines.

Lu, Hu, Wang, Xie 2023, "FedCLIP: Fast Generalization and Personalization for CLIP in Federated
Learning", arXiv 2302.13485; its reference code is microsoft/PersonalizedFL, folder fedclip.

    gate    = softmax(W2 tanh(W1 f + b1) + b2)            one weight for each of the D numbers of f
    adapted = gate * f                                    f is the raw feature of a picture
    logits  = scale * cos(adapted, t_c)                   for every class text t_c

Training, evaluation, prediction and the exported classifier all use these functions. The gate is
computed from the raw feature and applied before normalisation. Its gradients scale with the norm of
the feature, so unit features would make them too small.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

# Names in the reference's state_dict: an nn.Sequential of Linear, Tanh, Linear, Softmax.
W1, B1, W2, B2 = "0.weight", "0.bias", "2.weight", "2.bias"


def attend(terms: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """Gate raw features float32 (N, D); returns float32 (N, D), not normalised."""
    hidden = torch.tanh(linear(features, terms[W1], terms[B1]))  # (N, D)
    gate = torch.softmax(linear(hidden, terms[W2], terms[B2]), dim=1)  # (N, D), rows sum to 1
    return gate * features


def logits(features: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Compute CLIP's logits float32 (N, C): scaled cosines of features (N, D) and texts (C, D).

    The features may have any norm and are normalised here. The texts must have unit rows; this is
    not checked.
    """
    return scale * normalize(features, dim=1) @ texts.T


def adapted_logits(
    terms: Mapping[str, Tensor], features: Tensor, texts: Tensor, scale: float
) -> Tensor:
    """Compute the logits float32 (N, C) of gated raw features (N, D) and unit texts (C, D)."""
    return logits(attend(terms, features), texts, scale)
