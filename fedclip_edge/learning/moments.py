"""Exact moments of unit features for each class, which the one-round methods send. Numpy only.

With X the unit features (N, D) of a device and Y their one-hot labels (N, C):

    gram     upper triangle of X^T X, row by row      int64 (D (D + 1) / 2,), in steps of 2**-30
    sums     Y^T X                                    int64 (C, D), in steps of 2**-15
    counts   pictures of each class                   int64 (C,)

Every coordinate is rounded once to the grid 2**-15. Products and their sums are then integers in
grid steps. Float64 holds integers exactly up to 2**53, which allows 2**23 pictures.

Laws:

- The moments of any partition of the same pictures add up to the same integers as the moments of
  all pictures together.
- The moments leave out the classes with fewer than `min_per_class` pictures.
- They leave out features of zeros, which have no direction. So every picture adds 1 to the trace of
  X^T X, and `moment_check` can compare the trace with the counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedclip_edge.errors import DataError
from fedclip_edge.records import F32, I64, Features, Shapes, Sums, Update

F64 = NDArray[np.float64]

GRID_BITS = 15
MOST = 2 ** (53 - 2 * GRID_BITS)  # pictures of one side
SIDES = ("train", "validation")
_ROWS = 4096  # rows in a block: this limits the memory of the float64 copy


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments in float64 and in units of 1, instead of grid steps."""

    gram: F64  # (D, D)
    sums: F64  # (C, D)
    counts: F64  # (C,)

    @property
    def pictures(self) -> int:
        return int(self.counts.sum())


def sum_shapes(classes: int, dim: int) -> Shapes:
    """Names and shapes of the integer sums that `update` makes; `dim` is D."""
    kinds = {"gram": (dim * (dim + 1) // 2,), "sums": (classes, dim), "counts": (classes,)}
    return {f"{side}.{kind}": shape for side in SIDES for kind, shape in kinds.items()}


def update(train: Features, validation: Features, classes: int, min_per_class: int) -> Update:
    """Make the update of one device: separate moments of training and validation pictures.

    It has integer sums only. The weight is the number of pictures in them, at least 1. Raises
    DataError if either set has more than 2**23 pictures, the most that can be summed exactly.
    """
    sums: dict[str, I64] = {}
    for side, features in zip(SIDES, (train, validation), strict=True):
        sums |= send(side, features, classes, min_per_class)
    pictures = sum(int(sums[f"{side}.counts"].sum()) for side in SIDES)
    return Update("sum", max(1, pictures), {}, sums)


def received(sums: Sums) -> tuple[Moments, Moments]:
    """Convert added integer sums to the training and the validation moments."""
    return from_sums("train", sums), from_sums("validation", sums)


def added(one: Moments, other: Moments) -> Moments:
    """Add the moments of two sets of pictures."""
    return Moments(one.gram + other.gram, one.sums + other.sums, one.counts + other.counts)


def send(prefix: str, features: Features, classes: int, min_per_class: int) -> dict[str, I64]:
    """Compute the integer sums of one device's raw features; their names begin with `prefix`.

    Raises DataError for more than 2**23 pictures.
    """
    has_direction = features.vectors.any(axis=1)  # (N,)
    counts = np.bincount(features.labels[has_direction], minlength=classes)  # (C,)
    counts[counts < min_per_class] = 0
    kept = np.flatnonzero(has_direction & (counts[features.labels] > 0))
    if len(kept) > MOST:
        raise DataError(
            f"the device has {len(kept)} {prefix} pictures, but at most {MOST} can be summed "
            "exactly; divide them between several devices"
        )
    dim = features.vectors.shape[1]
    gram, sums = np.zeros((dim, dim)), np.zeros((classes, dim))
    for first in range(0, len(kept), _ROWS):
        rows = kept[first : first + _ROWS]
        x = _on_grid(features.vectors[rows])  # (n, D) in grid steps
        gram += x.T @ x
        np.add.at(sums, features.labels[rows], x)
    return {
        f"{prefix}.gram": gram[np.triu_indices(dim)].astype(np.int64),
        f"{prefix}.sums": sums.astype(np.int64),
        f"{prefix}.counts": counts.astype(np.int64),
    }


def from_sums(prefix: str, sums: Sums) -> Moments:
    """Convert added integer sums, whose names begin with `prefix`, to moments."""
    by_class = sums[f"{prefix}.sums"].astype(np.float64)  # (C, D)
    gram: F64 = np.zeros((by_class.shape[1],) * 2)  # (D, D)
    upper = np.triu_indices(len(gram))
    gram[upper] = sums[f"{prefix}.gram"] * 4.0**-GRID_BITS
    gram.T[upper] = gram[upper]
    counts = sums[f"{prefix}.counts"].astype(np.float64)  # (C,)
    return Moments(gram, by_class * 2.0**-GRID_BITS, counts)


def _on_grid(vectors: F32) -> F64:
    """Normalise rows, none of them all zeros, and round them to steps of 2**-15."""
    rows = vectors.astype(np.float64)
    norms = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    return np.asarray(np.rint(rows / norms * 2.0**GRID_BITS))
