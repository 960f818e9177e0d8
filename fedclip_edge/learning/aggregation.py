"""Exact sums over the client updates of a round; numpy only, for the coordinator.

Every value of a delta is rounded once to the grid 2**-grid_bits and added in int64. The integer
sums of an update are added as they are.

Laws:

- A total does not depend on the order in which contributions arrive.
- An update that could overflow a sum, or that exceeds a bound, is refused before anything is added.

The bounds are the plan's `max_weight` and, for deltas, its `max_norm`, which `strategies.total`
replaces by the round's. Integer sums grow with the
number of pictures, so no fixed norm can bound them. Instead each entry may be at most PER_PICTURE
times the weight, which for sums over pictures is the number of pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fedclip_edge.errors import PeerError
from fedclip_edge.records import F32, I64, Arrays, Plan, Update

# The most that one picture adds to an entry of an integer sum: the product of two coordinates, each
# at most 1, on the grid 2**-15 (learning/moments.py). Counts and sums of coordinates are smaller.
PER_PICTURE = 2**30
_INT64_MAX = 2**63 - 1
_BLOCK = 1 << 14  # values: their float32, float64 and int64 copies fit into the cache
_OVERFLOW = "the sum of the updates would overflow int64; choose a smaller grid_bits in [plan]"


class ExactSum:
    """A running total of the updates of a round; their `kind` must be "sum"."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._largest = 0  # bound on any entry of `terms`, in grid steps
        self._largest_sum = 0  # bound on any entry of `sums`
        self.terms: dict[str, I64] = {}  # the added deltas, in grid steps
        self.sums: dict[str, I64] = {}
        self.weight = 0

    def check(self, update: Update) -> None:
        """Check an update without adding it; raises PeerError if `add` would refuse it."""
        self._check_terms(update)
        self._largest_of(update)

    def add(self, update: Update) -> None:
        """Add one device's update; raises PeerError and adds nothing if it is out of bounds.

        It refuses an update whose kind is not "sum", whose names or shapes differ from those of
        the first update, or whose values exceed a bound or could overflow a sum. `max_norm` bounds
        the L2 norm of the whole delta divided by the weight.
        """
        largest, largest_sum = self._check_terms(update), self._largest_of(update)
        self._largest += largest
        self._largest_sum += largest_sum
        self.weight += update.weight
        for name, term in update.delta.items():
            if name not in self.terms:
                self.terms[name] = np.zeros(term.shape, np.int64)
            self._add_on_grid(self.terms[name], term)
        _add_in(self.sums, update.sums)

    def _largest_of(self, update: Update) -> int:
        """Check the update's integer sums and return their largest absolute entry."""
        # Not np.abs: the absolute value of the smallest int64 overflows to a negative number.
        ends = [(int(s.min()), int(s.max())) for s in update.sums.values() if s.size]
        largest = max((max(-low, high) for low, high in ends), default=0)
        if largest > PER_PICTURE * update.weight:
            raise PeerError(
                f"an integer sum of the update holds {largest}, which is above {PER_PICTURE} times "
                f"the update's weight {update.weight}"
            )
        if self._largest_sum + largest > _INT64_MAX:
            raise PeerError(
                "the integer sums would overflow int64; choose a smaller max_weight in [plan]"
            )
        return largest

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

    def _check_terms(self, update: Update) -> int:
        """Check the update's delta and return its largest absolute entry, in grid steps."""
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
        shapes = _shapes({**update.delta, **update.sums})
        expected = _shapes({**self.terms, **self.sums})
        if self.weight and shapes != expected:
            raise PeerError(
                f"the update's arrays {shapes} do not match those of the first update {expected}"
            )
        ends = [(float(t.min(initial=0)), float(t.max(initial=0))) for t in update.delta.values()]
        largest = max((max(-low, high) for low, high in ends), default=0.0)
        steps = round(math.ldexp(largest, plan.grid_bits))
        if self._largest + steps > _INT64_MAX:
            raise PeerError(_OVERFLOW)
        return steps

    def _add_on_grid(self, total: I64, term: F32) -> None:
        """Add a delta block by block.

        A block stays in the processor's cache. This halves the time and needs little memory.
        """
        step, totals, values = 2.0**self.plan.grid_bits, total.reshape(-1), term.reshape(-1)
        for first in range(0, values.size, _BLOCK):
            # The product is exact in float64 (float32 times a power of two); only rint rounds.
            block = values[first : first + _BLOCK].astype(np.float64)
            np.rint(np.multiply(block, step, out=block), out=block)
            totals[first : first + _BLOCK] += block.astype(np.int64)

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
