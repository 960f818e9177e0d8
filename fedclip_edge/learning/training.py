"""The seeded mini-batch loop of the attention adapter.

The three losses, on logits of the batch's B pictures:

- contrastive, the reference's: logits (B, B) against the text of every *picture*, the other
  pictures of one's own class counting as negatives; mean of the cross-entropies of rows and of
  columns. With duplicates in the batch it cannot reach zero.
- multi-positive (MIL-NCE: Miech et al. 2020, arXiv 1912.06430): the same, but what is made likely
  is one's own class as a whole, so that it holds no negatives. Equal shares of the target for
  all of one's class would change nothing: the texts of a class are one vector.
- cross-entropy: logits (B, C) against the classes.

Law: the order of the pictures comes from the seed alone, and nothing else is random; in one torch
thread the same seed gives the same bytes on one kind of machine.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedclip_edge.learning.adapter import adapted_logits
from fedclip_edge.learning.optimizers import Adam
from fedclip_edge.learning.options import Options
from fedclip_edge.records import F32, ClassTexts, Features, Terms


def use_one_thread() -> None:
    """For this process: sums in one order, so that a seed means one result on one kind of box."""
    torch.set_num_threads(1)


def train(
    terms: Terms, features: Features, classes: ClassTexts, options: Options, seed: int
) -> dict[str, F32]:
    """The adapter's terms after `options.epochs` over the features; the input is left alone."""
    trained = {name: torch.tensor(term, requires_grad=True) for name, term in terms.items()}
    parameters = list(trained.values())
    vectors = torch.from_numpy(features.vectors)  # (N, D)
    labels = torch.from_numpy(features.labels)  # (N,)
    texts = torch.from_numpy(classes.vectors)  # (C, D)
    optimizer = Adam(
        parameters,
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        weight_decay=options.weight_decay,
        decoupled=options.optimizer == "adamw",
    )
    for batch in batches(len(features), options.batch_size, options.epochs, seed):
        own = labels[batch]  # (B,)
        facing = texts if options.loss == "cross-entropy" else texts[own]  # (C, D) or (B, D)
        scores = adapted_logits(trained, vectors[batch], facing, classes.logit_scale)
        loss = _loss(scores, own, options.loss)
        optimizer.step(torch.autograd.grad(loss, parameters))
    return {name: term.detach().numpy() for name, term in trained.items()}


def batches(count: int, batch_size: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Shuffled indices, anew each epoch; the last batch may be short.

    A batch of one is skipped: it has no negatives (the reference skips it as well).
    """
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        order = torch.from_numpy(random.permutation(count))
        for start in range(0, count - 1, batch_size):
            yield order[start : start + batch_size]


def _loss(scores: Tensor, labels: Tensor, loss: str) -> Tensor:
    """Of logits (B, C) for cross-entropy, (B, B) with one text for each picture otherwise."""
    if loss == "cross-entropy":
        return cross_entropy(scores, labels)
    if loss == "contrastive":
        target = torch.arange(len(labels))
        return (cross_entropy(scores, target) + cross_entropy(scores.T, target)) / 2
    is_own = labels[:, None] == labels[None, :]  # (B, B), symmetric
    own = scores.masked_fill(~is_own, -torch.inf)
    rows = torch.logsumexp(scores, dim=1) - torch.logsumexp(own, dim=1)  # (B,)
    columns = torch.logsumexp(scores, dim=0) - torch.logsumexp(own, dim=0)  # (B,)
    return (rows.mean() + columns.mean()) / 2
