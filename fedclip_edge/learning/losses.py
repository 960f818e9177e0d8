"""The losses, on the logits of a batch's B pictures.

- contrastive, FedCLIP's: logits (B, B) against the text of every *picture*, the other pictures of
  one's own class counting as negatives; mean of the cross-entropies of rows and of columns. With
  duplicates in the batch it cannot reach zero.
- multi-positive (MIL-NCE: Miech et al. 2020, arXiv 1912.06430): the same, but what is made likely
  is one's own class as a whole, so that it holds no negatives. Equal shares of the target for
  all of one's class would change nothing: the texts of a class are one vector.
- cross-entropy: logits (B, C) against the classes; torch's own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["contrastive", "cross_entropy", "facing", "multi_positive", "on_texts"]


def facing(loss: str, texts: Tensor, labels: Tensor) -> Tensor:
    """The texts that a batch is scored against: (C, D) for cross-entropy, else one a picture."""
    return texts if loss == "cross-entropy" else texts[labels]


def on_texts(loss: str, scores: Tensor, labels: Tensor) -> Tensor:
    """The loss of that name, of the scores against the texts that it is `facing`."""
    return _LOSSES[loss](scores, labels)


def contrastive(scores: Tensor, labels: Tensor) -> Tensor:
    """Of logits (B, B)."""
    target = torch.arange(len(labels))
    return (cross_entropy(scores, target) + cross_entropy(scores.T, target)) / 2


def multi_positive(scores: Tensor, labels: Tensor) -> Tensor:
    """Of logits (B, B)."""
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
