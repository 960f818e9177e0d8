"""Exact sums over devices; numpy only, for the coordinator.

Law: a total does not depend on the order in which contributions come. Every value of a term is
rounded once to the grid 2**-grid_bits and added in int64; an update's own integer sums are added as
they are. A contribution whose values could overflow a sum, or that is above the bounds, is
refused before anything is added.

The bounds: `max_weight` and, for terms, `max_norm` of the plan. A norm means nothing for integer
sums over pictures, which grow with their number: each entry may be at most PER_PICTURE times the
weight, which then counts pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fedclip_edge.errors import PeerError
from fedclip_edge.records import F32, I64, Arrays, Plan, Update

# What one picture can add to an entry of an integer sum: the product of two coordinates, each at
# most 1, on the grid 2**-15 (learning/moments.py). Counts and sums of coordinates are below.
PER_PICTURE = 2**30
_INT64_MAX = 2**63 - 1
_BLOCK = 1 << 14  # values: in float64 and int64 they fit the cache beside what they come from
_OVERFLOW = "the sum would overflow; choose fewer grid_bits"


class ExactSum:
    """A running total of updates of kind "sum"."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._largest = 0  # bound on any entry of `terms`
        self._largest_sum = 0  # and of `sums`
        self.terms: dict[str, I64] = {}  # in grid steps
        self.sums: dict[str, I64] = {}
        self.weight = 0

    def check(self, update: Update) -> None:
        """Raises PeerError where `add` would refuse the update."""
        self._check_terms(update)
        self._largest_of(update)

    def add(self, update: Update) -> None:
        """Adds one device's update; raises PeerError, and adds nothing, where it is out of bounds.

        max_norm bounds the norm of the whole update before its weight was multiplied in.
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
        """The largest entry of the update's integer sums."""
        # Not np.abs: of the smallest int64 it is negative.
        ends = [(int(s.min()), int(s.max())) for s in update.sums.values() if s.size]
        largest = max((max(-low, high) for low, high in ends), default=0)
        if largest > PER_PICTURE * update.weight:
            raise PeerError(
                f"an integer sum of {largest} is above {PER_PICTURE} times its weight "
                f"{update.weight}"
            )
        if self._largest_sum + largest > _INT64_MAX:
            raise PeerError("the integer sums would overflow; choose a smaller max_weight")
        return largest

    def merge(self, other: ExactSum) -> None:
        """Adds what another sum of the same plan has added; raises PeerError as `add` does."""
        if not other.weight:
            return
        shapes = _shapes({**other.terms, **other.sums})
        expected = _shapes({**self.terms, **self.sums})
        if self.weight and shapes != expected:
            raise PeerError(f"terms {shapes} do not match {expected}")
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
        """The largest entry of the update's terms, in grid steps."""
        plan = self.plan
        if update.kind != "sum":
            raise PeerError(f"an update of kind {update.kind!r} cannot be summed")
        if update.weight > plan.max_weight:
            raise PeerError(f"weight {update.weight} is above max_weight {plan.max_weight}")
        norm = norm_of(update.delta) / update.weight
        if norm > plan.max_norm:
            raise PeerError(f"norm {norm:.4g} is above max_norm {plan.max_norm:g}")
        shapes = _shapes({**update.delta, **update.sums})
        expected = _shapes({**self.terms, **self.sums})
        if self.weight and shapes != expected:
            raise PeerError(f"terms {shapes} do not match {expected}")
        ends = [(float(t.min(initial=0)), float(t.max(initial=0))) for t in update.delta.values()]
        largest = max((max(-low, high) for low, high in ends), default=0.0)
        steps = round(math.ldexp(largest, plan.grid_bits))
        if self._largest + steps > _INT64_MAX:
            raise PeerError(_OVERFLOW)
        return steps

    def _add_on_grid(self, total: I64, term: F32) -> None:
        """A block at a time, which stays in the processor's cache: half the time, and no new pages."""
        step, totals, values = 2.0**self.plan.grid_bits, total.reshape(-1), term.reshape(-1)
        for first in range(0, values.size, _BLOCK):
            # In float64 a float32 times a power of two is exact; rint is the only rounding.
            block = values[first : first + _BLOCK].astype(np.float64)
            np.rint(np.multiply(block, step, out=block), out=block)
            totals[first : first + _BLOCK] += block.astype(np.int64)

    def mean(self) -> Mapping[str, F32]:
        """The weighted mean of what was added, f32; zero terms where nothing was."""
        step = 2.0**-self.plan.grid_bits / max(1, self.weight)
        return {name: (total * step).astype(np.float32) for name, total in self.terms.items()}


def _add_in(total: dict[str, I64], numbers: Mapping[str, I64]) -> None:
    """In place where there is something: a thousand new arrays of megabytes cost more than adding."""
    for name, its in numbers.items():
        if name in total:
            total[name] += its
        else:
            total[name] = its.copy()


def _shapes(terms: Mapping[str, F32 | I64]) -> dict[str, tuple[int, ...]]:
    return {name: term.shape for name, term in sorted(terms.items())}


def norm_of(terms: Arrays) -> float:
    """The L2 norm over all terms together."""
    squared = 0.0
    for term in terms.values():
        values = term.reshape(-1)
        for first in range(0, values.size, _BLOCK):
            block = values[first : first + _BLOCK].astype(np.float64)
            squared += float(np.square(block, out=block).sum())  # no BLAS: its threads would spin
    return math.sqrt(squared)
