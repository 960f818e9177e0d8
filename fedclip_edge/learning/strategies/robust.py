"""Byzantine-robust strategies: median, trimmed mean, Krum and multi-Krum.

They tolerate some devices that send arbitrary updates, and need every update separately.

- median, trimmed-mean: computed for every coordinate. The trimmed mean leaves out the f smallest
  and the f largest values. Yin, Chen, Ramchandran, Bartlett 2018, "Byzantine-Robust Distributed
  Learning: Towards Optimal Statistical Rates", arXiv 1803.01498.
- krum, multi-krum: the update nearest to the others, or the mean of the n - f nearest. The score of
  an update is the sum of its squared distances to the n - f - 2 updates nearest to it; the lowest
  score wins. Blanchard, El Mhamdi, Guerraoui, Stainer 2017, "Machine Learning with Adversaries:
  Byzantine Tolerant Gradient Descent", arXiv 1703.02757.

f is `byzantine` times the n devices of the round, rounded up, but always less than half of n. For
the scores, f is also limited to (n - 3) / 2, so that a score has at least one distance. With one or
two devices no rule can tell which one is Byzantine. Every device has weight 1, because a Byzantine
device could claim any weight.

Option: `byzantine`, the largest share of devices that may be Byzantine. The median has no options.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedclip_edge import log
from fedclip_edge.learning.singles import Singles
from fedclip_edge.learning.strategy import NoOptions, State, moved
from fedclip_edge.records import F32, I64, Model

_COLUMNS = 1 << 16  # columns in a block: this limits the memory of its float64 copy


@dataclass(frozen=True)
class Options:
    """Options; the constructor raises ValueError with the option's name and range."""

    byzantine: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.byzantine < 0.5:
            raise ValueError(f"byzantine: expected at least 0 and below 0.5, got {self.byzantine}")


def median(model: Model, total: Singles, state: State, options: NoOptions) -> tuple[Model, State]:
    """Add the median change of every coordinate to the model."""
    change = {n: np.median(total.of(n), axis=0).astype(np.float32) for n in total.shapes}
    return moved(model, change), state


def trimmed_mean(
    model: Model, total: Singles, state: State, options: Options
) -> tuple[Model, State]:
    """Add the trimmed mean of the changes of every coordinate to the model."""
    count = total.weight
    cut = byzantine_count(count, options.byzantine)
    change = {n: _mean(np.sort(total.of(n), axis=0)[cut : count - cut]) for n in total.shapes}
    return moved(model, change), state


def krum(model: Model, total: Singles, state: State, options: Options) -> tuple[Model, State]:
    """Choose the change that is nearest to the others and add it to the model."""
    return _nearest(model, total, state, options, one=True)


def multi_krum(model: Model, total: Singles, state: State, options: Options) -> tuple[Model, State]:
    """Choose the n - f changes that are nearest to the others and add their mean to the model."""
    return _nearest(model, total, state, options, one=False)


def byzantine_count(count: int, share: float) -> int:
    """Compute f: how many of `count` devices may be Byzantine."""
    most = math.ceil(share * count - 1e-9)  # because 0.28 * 25 gives 7.000000000000001
    return max(0, min(most, (count - 1) // 2))


def scores(total: Singles, f: int) -> F32:
    """Compute Krum's score of each of n updates, float32 (n,); zeros for one or two updates."""
    count = total.weight
    squared = np.zeros((count, count))  # (n, n)
    for name in total.shapes:
        rows = total.of(name).reshape(count, -1)  # (n, size of the parameter)
        for first in range(0, rows.shape[1], _COLUMNS):
            block = rows[:, first : first + _COLUMNS].astype(np.float64)
            block -= np.median(block, axis=0)  # small values, so norms - 2 * gram is precise
            gram = block @ block.T
            norms = np.diag(gram)
            squared += np.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0)
    others = np.sort(squared + np.diag(np.full(count, np.inf)), axis=1)  # own distance last
    near = others[:, : max(0, count - f - 2)]
    return np.asarray(near.sum(axis=1), np.float32)


def _nearest(
    model: Model, total: Singles, state: State, options: Options, *, one: bool
) -> tuple[Model, State]:
    count = total.weight
    f = byzantine_count(count, options.byzantine)
    order: I64 = np.argsort(scores(total, max(0, min(f, (count - 3) // 2))), kind="stable")
    kept = order[: 1 if one else count - f]
    log.event("nearest_updates", devices=count, byzantine=f, kept=len(kept))
    return moved(model, {n: _mean(total.of(n)[np.sort(kept)]) for n in total.shapes}), state


def _mean(rows: F32) -> F32:
    return np.asarray(rows.mean(axis=0, dtype=np.float64), np.float32)
