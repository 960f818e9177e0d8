"""A list of a round's updates, for strategies that must see each update. Numpy only.

Memory grows with the number of devices in the round; that of `ExactSum` does not.

Law: the result does not depend on the order in which the updates arrive: they are sorted by hash.
"""

from __future__ import annotations

import hashlib

import numpy as np

from fedclip_edge.errors import PeerError
from fedclip_edge.learning.aggregation import norm_of
from fedclip_edge.records import F32, Arrays, Plan, Shapes, Sums, Update


class Singles:
    """The updates of a round; their `kind` is "single" and their names and shapes are the same."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._by_hash: list[tuple[str, Arrays]] = []

    @property
    def weight(self) -> int:
        """The number of updates, because each has weight 1."""
        return len(self._by_hash)

    @property
    def sums(self) -> Sums:
        """An empty mapping, because single updates have no integer sums."""
        return {}

    def check(self, update: Update) -> float:
        """Check an update without keeping it; returns the norm of its delta.

        Raises PeerError if `add` would refuse it: if its kind is not "single", its weight is not 1,
        it has integer sums, its norm is above the round's `max_norm`, or its names or shapes differ
        from those of the first update.
        """
        if update.kind != "single":
            raise PeerError(
                f"an update has kind {update.kind!r}; the strategy {self.plan.strategy} needs kind "
                "'single'"
            )
        if update.weight != 1 or update.sums:
            raise PeerError(
                f"an update of kind 'single' has weight {update.weight} and {len(update.sums)} "
                "sums; it must have weight 1 and no sums"
            )
        norm = norm_of(update.delta)
        if norm > self.plan.max_norm:
            raise PeerError(
                f"the update's norm {norm:.4g} is above the round's max_norm {self.plan.max_norm:g}"
            )
        shapes = {name: term.shape for name, term in update.delta.items()}
        if self._by_hash and shapes != self.shapes:
            raise PeerError(
                f"the update's arrays {shapes} do not match those of the first update {self.shapes}"
            )
        return norm

    def add(self, update: Update) -> None:
        """Keep one device's update; raises PeerError and keeps nothing if `check` refuses it."""
        self.check(update)
        digest = hashlib.sha256()
        for name, term in sorted(update.delta.items()):
            digest.update(name.encode() + b"\0" + np.ascontiguousarray(term).tobytes())
        self._by_hash.append((digest.hexdigest(), update.delta))
        self._by_hash.sort(key=lambda one: one[0])

    def merge(self, other: Singles) -> None:
        """Add the updates that `other` holds for the same round; they are not checked again."""
        self._by_hash = sorted([*self._by_hash, *other._by_hash], key=lambda one: one[0])

    @property
    def shapes(self) -> Shapes:
        """The shapes of an update's delta, by name; empty before the first update."""
        return {name: term.shape for _, terms in self._by_hash[:1] for name, term in terms.items()}

    def of(self, name: str) -> F32:
        """Stack one named delta of all n updates: float32 (n, ...), sorted by hash."""
        return np.stack([terms[name] for _, terms in self._by_hash])
