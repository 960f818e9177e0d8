"""Exact sums over the client updates of a round; numpy only, for the coordinator.

Every value of a delta is rounded once to the grid 2**-grid_bits and added in int64. The integer
sums of an update are added as they are.

Laws:

- A total does not depend on the order in which contributions arrive.
- An update that could overflow a sum, or that exceeds a bound, is refused before anything is added.

The bounds are the plan's `max_weight` and, for deltas, its `max_norm`, which `strategies.total`
replaces by the round's. Integer sums grow with the number of pictures, so no fixed norm can bound
them. Instead each entry may be at most PER_PICTURE times the weight, which for sums over pictures
is the number of pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedclip_edge.errors import PeerError
from fedclip_edge.records import F32, I64, Arrays, Plan, Update

# The most that one picture adds to an entry of an integer sum: the product of two coordinates, each
# at most 1, on the grid 2**-15 (learning/moments.py). Counts and sums of coordinates are smaller.
PER_PICTURE = 2**30
_INT64_MAX = 2**63 - 1
_BLOCK = 1 << 14  # values: their float32, float64 and int64 copies fit into the cache
# In float64, adding 1.5 * 2**52 to a value below 2**51 rounds it to an integer, half to even as
# rint does. The integer is then the difference between the bit patterns of sum and constant.
_ROUNDER = 1.5 * 2.0**52
_ROUNDER_BITS = int(np.float64(_ROUNDER).view(np.int64))
_MOST_STEPS = 2**51
_OVERFLOW = "the sum of the updates would overflow int64; choose a smaller grid_bits in [plan]"


@dataclass(frozen=True, eq=False)
class _Checked:
    """An update that is within the plan's bounds, with its largest absolute entries."""

    update: Update
    norm: float  # of its delta, divided by its weight
    steps: int  # of its delta, in grid steps
    largest_sum: int  # of its integer sums


class ExactSum:
    """A running total of the updates of a round; their `kind` must be "sum"."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._largest = 0  # bound on any entry of `terms`, in grid steps
        self._largest_sum = 0  # bound on any entry of `sums`
        self.terms: dict[str, I64] = {}  # the added deltas, in grid steps
        self.sums: dict[str, I64] = {}
        self.weight = 0
        self._last: _Checked | None = None  # checked, and not added yet

    def check(self, update: Update) -> float:
        """Check an update without adding it; returns the norm of its delta, divided by its weight.

        The values of the update that was checked last are not checked again. Raises PeerError if
        `add` would refuse the update.
        """
        if self._last is None or self._last.update is not update:
            self._last = self._check(update)
        self._check_room(self._last)
        return self._last.norm

    def add(self, update: Update) -> None:
        """Add one device's update; raises PeerError and adds nothing if it is out of bounds.

        It refuses an update whose kind is not "sum", whose names or shapes differ from those of
        the first update, or whose values exceed a bound or could overflow a sum. `max_norm` bounds
        the L2 norm of the whole delta divided by the weight.
        """
        checked, self._last = self._last, None
        if checked is None or checked.update is not update:
            checked = self._check(update)
        self._check_room(checked)
        self._largest += checked.steps
        self._largest_sum += checked.largest_sum
        self.weight += update.weight
        for name, term in update.delta.items():
            if name not in self.terms:
                self.terms[name] = np.zeros(term.shape, np.int64)
            self._add_on_grid(self.terms[name], term, checked.steps)
        _add_in(self.sums, update.sums)

    def merge(self, other: ExactSum) -> None:
        """Add the totals of another sum of the same plan.

        Raises PeerError and adds nothing if names or shapes differ or a sum could overflow.
        """
        if not other.weight:
            return
        shapes = _shapes({**other.terms, **other.sums})
        expected = _shapes({**self.terms, **self.sums})
        if self.weight and shapes != expected:
            raise PeerError(f"the arrays {shapes} do not match those added before {expected}")
        if (
            self._largest + other._largest > _INT64_MAX
            or self._largest_sum + other._largest_sum > _INT64_MAX
        ):
            raise PeerError(_OVERFLOW)
        self._largest += other._largest
        self._largest_sum += other._largest_sum
        self.weight += other.weight
        _add_in(self.terms, other.terms)
        _add_in(self.sums, other.sums)

    def _check(self, update: Update) -> _Checked:
        """Check an update against the bounds of the plan; raises PeerError."""
        plan = self.plan
        if update.kind != "sum":
            raise PeerError(
                f"an update has kind {update.kind!r}; the strategy {plan.strategy} needs kind 'sum'"
            )
        if update.weight > plan.max_weight:
            raise PeerError(
                f"the update's weight {update.weight} is above the plan's max_weight "
                f"{plan.max_weight}"
            )
        norm = norm_of(update.delta) / update.weight
        if norm > plan.max_norm:
            raise PeerError(
                f"the update's norm {norm:.4g} is above the round's max_norm {plan.max_norm:g}"
            )
        ends = [(float(t.min(initial=0)), float(t.max(initial=0))) for t in update.delta.values()]
        largest = max((max(-low, high) for low, high in ends), default=0.0)
        # Not np.abs: the absolute value of the smallest int64 overflows to a negative number.
        whole = [(int(s.min()), int(s.max())) for s in update.sums.values() if s.size]
        largest_sum = max((max(-low, high) for low, high in whole), default=0)
        if largest_sum > PER_PICTURE * update.weight:
            raise PeerError(
                f"an integer sum of the update holds {largest_sum}, which is above {PER_PICTURE} "
                f"times the update's weight {update.weight}"
            )
        return _Checked(update, norm, round(math.ldexp(largest, plan.grid_bits)), largest_sum)

    def _check_room(self, checked: _Checked) -> None:
        """Check that the sums can take an update; raises PeerError."""
        shapes = _shapes({**checked.update.delta, **checked.update.sums})
        expected = _shapes({**self.terms, **self.sums})
        if self.weight and shapes != expected:
            raise PeerError(
                f"the update's arrays {shapes} do not match those of the first update {expected}"
            )
        if self._largest + checked.steps > _INT64_MAX:
            raise PeerError(_OVERFLOW)
        if self._largest_sum + checked.largest_sum > _INT64_MAX:
            raise PeerError(
                "the integer sums would overflow int64; choose a smaller max_weight in [plan]"
            )

    def _add_on_grid(self, total: I64, term: F32, largest: int) -> None:
        """Add a delta block by block; no entry of it is above `largest` grid steps.

        A block stays in the processor's cache. This halves the time and needs little memory.
        """
        step, totals, values = 2.0**self.plan.grid_bits, total.reshape(-1), term.reshape(-1)
        rows = np.empty(min(_BLOCK, values.size), np.float64)
        for first in range(0, values.size, _BLOCK):
            some = values[first : first + _BLOCK]
            block = rows[: some.size]
            block[:] = some
            block *= step  # exact: float32 times a power of two; only the next step rounds
            if largest < _MOST_STEPS:
                block += _ROUNDER
                whole = block.view(np.int64)
                whole -= _ROUNDER_BITS
            else:
                whole = np.rint(block, out=block).astype(np.int64)
            totals[first : first + _BLOCK] += whole

    def mean(self) -> Mapping[str, F32]:
        """Weighted mean of the added deltas, float32 by name; empty if nothing was added."""
        step = 2.0**-self.plan.grid_bits / max(1, self.weight)
        return {name: (total * step).astype(np.float32) for name, total in self.terms.items()}


def _add_in(total: dict[str, I64], numbers: Mapping[str, I64]) -> None:
    """Add arrays to the totals by name, in place.

    With a thousand updates, allocating new arrays of megabytes would cost more than adding them.
    """
    for name, its in numbers.items():
        if name in total:
            total[name] += its
        else:
            total[name] = its.copy()


def _shapes(terms: Mapping[str, F32 | I64]) -> dict[str, tuple[int, ...]]:
    return {name: term.shape for name, term in sorted(terms.items())}


def norm_of(terms: Arrays) -> float:
    """Compute the L2 norm over all arrays together, in float64."""
    squared = 0.0
    for term in terms.values():
        values = term.reshape(-1)
        for first in range(0, values.size, _BLOCK):
            block = values[first : first + _BLOCK].astype(np.float64)
            squared += float(np.square(block, out=block).sum())  # not np.dot: its threads busy-wait
    return math.sqrt(squared)
