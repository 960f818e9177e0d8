"""Losses on the logits of a batch of B pictures.

- contrastive (FedCLIP): logits (B, B) of every picture against the class text of every picture of
  the batch. Other pictures of the same class count as negatives. The loss is the mean of the
  cross-entropies over rows and over columns. If a class occurs twice in the batch, the loss cannot
  reach zero.
- multi-positive (MIL-NCE: Miech et al. 2020, arXiv 1912.06430): the same logits, but all pictures
  of the same class together count as the positive, so none of them is a negative. A target with
  equal shares for these pictures would give the contrastive loss again, because all pictures of a
  class have the same text vector.
- cross-entropy: logits (B, C) against the classes, from torch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["contrastive", "cross_entropy", "facing", "multi_positive", "on_texts"]


def facing(loss: str, texts: Tensor, labels: Tensor) -> Tensor:
    """Select the texts that a batch is compared with, from unit texts (C, D) and labels int64 (B,).

    Returns float32 (C, D) for cross-entropy, otherwise (B, D): the class text of each picture.
    """
    return texts if loss == "cross-entropy" else texts[labels]


def on_texts(loss: str, scores: Tensor, labels: Tensor) -> Tensor:
    """Compute the loss named `loss` of a batch; returns a scalar.

    `scores` are the logits float32 against the texts from `facing`: (B, C) or (B, B). `labels` are
    int64 (B,). Raises KeyError for an unknown name.
    """
    return _LOSSES[loss](scores, labels)


def contrastive(scores: Tensor, labels: Tensor) -> Tensor:
    """Compute the contrastive loss, a scalar, of logits float32 (B, B) and labels int64 (B,)."""
    target = torch.arange(len(labels))  # (B,)
    return (cross_entropy(scores, target) + cross_entropy(scores.T, target)) / 2


def multi_positive(scores: Tensor, labels: Tensor) -> Tensor:
    """Compute the multi-positive loss, a scalar, of logits float32 (B, B) and labels int64 (B,)."""
    is_own = labels[:, None] == labels[None, :]  # (B, B), symmetric
    own = scores.masked_fill(~is_own, -torch.inf)
    rows = torch.logsumexp(scores, dim=1) - torch.logsumexp(own, dim=1)  # (B,)
    columns = torch.logsumexp(scores, dim=0) - torch.logsumexp(own, dim=0)  # (B,)
    return (rows.mean() + columns.mean()) / 2


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "contrastive": contrastive,
    "cross-entropy": cross_entropy,
    "multi-positive": multi_positive,
}
