"""Exact moments of unit features, class by class: what the one-round methods send. Numpy only.

With X the unit features (N, D) of a device and Y their one-hot labels (N, C):

    gram     upper triangle of X^T X, row by row      int64 (D (D + 1) / 2,), in steps of 2**-30
    sums     Y^T X                                    int64 (C, D), in steps of 2**-15
    counts   pictures of each class                   int64 (C,)

Every coordinate is rounded once to the grid 2**-15, so that products and their sums are whole
numbers, which float64 holds exactly up to 2**53: 2**23 pictures.

Laws: the moments of any partition of the same pictures add up to the same integers as those of
all of them together; nothing of a class with fewer than `min_per_class` pictures is in them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedclip_edge.errors import DataError
from fedclip_edge.records import F32, I64, Features, Shapes, Sums, Update

F64 = NDArray[np.float64]

GRID_BITS = 15
_MOST = 2 ** (53 - 2 * GRID_BITS)
_SIDES = ("train", "validation")
_ROWS = 4096  # of a block: bounds the memory for the copy in float64


@dataclass(frozen=True, eq=False)
class Moments:
    """The moments again, in float64 and in units of 1."""

    gram: F64  # (D, D)
    sums: F64  # (C, D)
    counts: F64  # (C,)

    @property
    def pictures(self) -> int:
        return int(self.counts.sum())


def sum_shapes(classes: int, dim: int) -> Shapes:
    """Names and shapes of the integer sums in `update`."""
    kinds = {"gram": (dim * (dim + 1) // 2,), "sums": (classes, dim), "counts": (classes,)}
    return {f"{side}.{kind}": shape for side in _SIDES for kind, shape in kinds.items()}


def update(train: Features, validation: Features, classes: int, min_per_class: int) -> Update:
    """The moments of both sides, apart; the weight counts the pictures in them.

    Raises DataError for more pictures than can be summed exactly.
    """
    sums: dict[str, I64] = {}
    for side, features in zip(_SIDES, (train, validation), strict=True):
        sums |= send(side, features, classes, min_per_class)
    pictures = sum(int(sums[f"{side}.counts"].sum()) for side in _SIDES)
    return Update("sum", max(1, pictures), {}, sums)


def received(sums: Sums) -> tuple[Moments, Moments]:
    """The moments of both sides, training and validation, added over all devices."""
    return from_sums("train", sums), from_sums("validation", sums)


def send(prefix: str, features: Features, classes: int, min_per_class: int) -> dict[str, I64]:
    """What a device sends of its raw features; raises DataError for too many pictures."""
    counts = np.bincount(features.labels, minlength=classes)
    counts[counts < min_per_class] = 0
    kept = np.flatnonzero(counts[features.labels] > 0)
    if len(kept) > _MOST:
        raise DataError(f"{len(kept)} pictures on one device, limit {_MOST}; split the device")
    dim = features.vectors.shape[1]
    gram, sums = np.zeros((dim, dim)), np.zeros((classes, dim))
    for first in range(0, len(kept), _ROWS):
        rows = kept[first : first + _ROWS]
        x = _on_grid(features.vectors[rows])  # (n, D) whole numbers
        gram += x.T @ x
        np.add.at(sums, features.labels[rows], x)
    return {
        f"{prefix}.gram": gram[np.triu_indices(dim)].astype(np.int64),
        f"{prefix}.sums": sums.astype(np.int64),
        f"{prefix}.counts": counts.astype(np.int64),
    }


def from_sums(prefix: str, sums: Sums) -> Moments:
    """The moments that were sent, added over all devices."""
    by_class = sums[f"{prefix}.sums"].astype(np.float64)  # (C, D)
    gram: F64 = np.zeros((by_class.shape[1],) * 2)
    upper = np.triu_indices(len(gram))
    gram[upper] = sums[f"{prefix}.gram"] * 4.0**-GRID_BITS
    gram.T[upper] = gram[upper]
    counts = sums[f"{prefix}.counts"].astype(np.float64)
    return Moments(gram, by_class * 2.0**-GRID_BITS, counts)


def _on_grid(vectors: F32) -> F64:
    """Unit rows in steps of 2**-15; a row of zeros stays one."""
    rows = vectors.astype(np.float64)
    norms = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    return np.asarray(np.rint(rows / np.where(norms > 0, norms, 1) * 2.0**GRID_BITS))
