"""Check of one device's integer sums (moments.py): could any pictures have given them? Numpy only.

All numbers are in grid steps. With x the n features of a side, each a unit vector of length 2**15
plus at most half a step in each of its D coordinates:

    counts   0 or more, none from 1 to min_per_class - 1; n in all
    weight   n of both sides, at least 1
    gram     the trace is sum |x|^2, and |x| is within sqrt(D) / 2 of 2**15
    sums     |s_c| <= n_c (2**15 + sqrt(D) / 2) for the sum s_c of class c
    both     X^T X - sum_c s_c s_c^T / n_c, the scatter within the classes, has no eigenvalue
             below 0

The last line bounds every entry of X^T X, and ties it to the sums. It is checked by one Cholesky
factorisation for each side. A small multiple of the identity is added before, for the rounding of
float64. It is less than a thousandth of the smallest lambda that the ridge head tries. The whole
check takes 14 ms of a processor for D = 512, once for each device, because methods that send such
sums have one round.

Laws:

- The sums that `moments.send` makes from any pictures pass.
- A device can only claim to have pictures, with labels and features of its choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedclip_edge.errors import PeerError
from fedclip_edge.learning.moments import F64, GRID_BITS, MOST, SIDES
from fedclip_edge.records import I64, Sums, Update

# Part of the trace that is added to each eigenvalue. Cholesky's own error is about D**2 * 1e-16 of
# it, or 4e-10 for D = 2048.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class _Side:
    """The sums of one side in float64, in grid steps."""

    name: str
    gram: F64  # (D, D), the upper triangle only
    sums: F64  # (C, D)
    counts: F64  # (C,)

    @property
    def pictures(self) -> int:
        return int(self.counts.sum())

    @property
    def longest(self) -> float:
        """The largest length of a feature on the grid; the smallest is as far below 2**15."""
        return 2.0**GRID_BITS * (1 + 1e-12) + math.sqrt(len(self.gram)) / 2


def check_moments(update: Update, min_per_class: int) -> None:
    """Raise PeerError, with the reason, unless pictures can have the update's sums and weight.

    The sums must have the names and shapes of `moments.sum_shapes`.
    """
    pictures = 0
    for name in SIDES:
        _check_counts(name, update.sums[f"{name}.counts"], min_per_class)
        side = _read_side(name, update.sums)
        _check_sums(side)
        _check_trace(side)
        _check_scatter(side)
        pictures += side.pictures
    if update.weight != max(1, pictures):
        raise PeerError(
            f"the update's weight is {update.weight}, but its counts are {pictures} pictures"
        )


def counts_of(sums: Sums) -> tuple[int, int]:
    """Return the numbers of training and of validation pictures in a device's checked sums."""
    train, validation = (int(sums[f"{side}.counts"].sum()) for side in SIDES)
    return train, validation


def _read_side(name: str, sums: Sums) -> _Side:
    by_class = sums[f"{name}.sums"].astype(np.float64)  # (C, D)
    dim, packed = by_class.shape[1], sums[f"{name}.gram"]  # (D (D + 1) / 2,)
    gram = np.zeros((dim, dim))
    first = 0
    for row in range(dim):
        # Slices, because an index of every entry would take longer than the whole check.
        gram[row, row:] = packed[first : first + dim - row]
        first += dim - row
    return _Side(name, gram, by_class, sums[f"{name}.counts"].astype(np.float64))


def _check_counts(name: str, counts: I64, min_per_class: int) -> None:
    """Check the counts (C,) of one side before anything is computed from them."""
    if counts.size and not 0 <= counts.min() <= counts.max() <= MOST:
        raise PeerError(
            f"the {name} counts are from {counts.min()} to {counts.max()}; expected 0 to {MOST}"
        )
    if counts.sum() > MOST:
        raise PeerError(f"the {name} counts are {counts.sum()} pictures in all, limit {MOST}")
    few = counts[(counts > 0) & (counts < min_per_class)]
    if few.size:
        raise PeerError(
            f"a class has {few[0]} {name} pictures; a device leaves out classes with fewer than "
            f"min_per_class = {min_per_class}"
        )


def _check_sums(side: _Side) -> None:
    lengths = np.sqrt(np.square(side.sums).sum(axis=1))  # (C,)
    too_long = np.flatnonzero(lengths > side.counts * side.longest)
    if too_long.size:
        label = int(too_long[0])
        raise PeerError(
            f"the sum of the {side.name} features of class {label} is "
            f"{lengths[label] / 2**GRID_BITS:.6g} long, but there are "
            f"{int(side.counts[label])} of them, with length 1"
        )


def _check_trace(side: _Side) -> None:
    longest, trace = side.longest, float(np.trace(side.gram))
    shortest = max(0.0, 2.0 ** (GRID_BITS + 1) - longest)
    if not side.pictures * shortest**2 <= trace <= side.pictures * longest**2:
        raise PeerError(
            f"the {side.name} gram matrix has the trace {trace / 4**GRID_BITS:.6g}; the unit "
            f"features of {side.pictures} pictures give that number"
        )


def _check_scatter(side: _Side) -> None:
    known = side.counts > 0
    roots = side.sums[known] / np.sqrt(side.counts[known])[:, None]  # (classes with pictures, D)
    scatter = side.gram - roots.T @ roots  # (D, D), right in the upper triangle only
    if not side.pictures:
        is_possible = not scatter.any()
    else:
        scatter.flat[:: len(scatter) + 1] += _ROUNDING * side.pictures * 4.0**GRID_BITS
        is_possible = _is_positive(scatter.T)
    if not is_possible:
        raise PeerError(
            f"no {side.name} features have the update's gram matrix and sums: the scatter within "
            "their classes would have a negative eigenvalue"
        )


def _is_positive(lower: F64) -> bool:
    """Tell whether a symmetric matrix (D, D) is positive definite, from its lower triangle."""
    try:
        np.linalg.cholesky(lower)
    except np.linalg.LinAlgError:
        return False
    return True
