"""The updates of a round, each as it came: for strategies that must see every one. Numpy only.

Law: what is read from them does not depend on the order in which they came: they stand in the order
of their hashes. Memory grows with the devices of the round; `ExactSum` is what does not.
"""

from __future__ import annotations

import hashlib

import numpy as np

from fedclip_edge.errors import PeerError
from fedclip_edge.learning.aggregation import norm_of
from fedclip_edge.records import F32, Arrays, Plan, Shapes, Sums, Update


class Singles:
    """Updates of kind "single", of one layout."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._by_hash: list[tuple[str, Arrays]] = []

    @property
    def weight(self) -> int:
        """How many there are: each device counts the same."""
        return len(self._by_hash)

    @property
    def sums(self) -> Sums:
        """None: whole numbers are for sums."""
        return {}

    def check(self, update: Update) -> None:
        """Raises PeerError where `add` would refuse the update."""
        if update.kind != "single":
            raise PeerError(
                f"an update of kind {update.kind!r} came, and {self.plan.strategy} sees each by itself"
            )
        if update.weight != 1 or update.sums:
            raise PeerError(
                f"a single update has weight 1 and no sums, got weight {update.weight} and "
                f"{len(update.sums)} sums"
            )
        norm = norm_of(update.delta)
        if norm > self.plan.max_norm:
            raise PeerError(f"norm {norm:.4g} is above max_norm {self.plan.max_norm:g}")
        shapes = {name: term.shape for name, term in update.delta.items()}
        if self._by_hash and shapes != self.shapes:
            raise PeerError(f"terms {shapes} do not match {self.shapes}")

    def add(self, update: Update) -> None:
        """Keeps one device's update; raises PeerError, and keeps nothing, where it is out of bounds."""
        self.check(update)
        digest = hashlib.sha256()
        for name, term in sorted(update.delta.items()):
            digest.update(name.encode() + b"\0" + np.ascontiguousarray(term).tobytes())
        self._by_hash.append((digest.hexdigest(), update.delta))
        self._by_hash.sort(key=lambda one: one[0])

    def merge(self, other: Singles) -> None:
        """Keeps what another part of the same round has kept."""
        self._by_hash = sorted([*self._by_hash, *other._by_hash], key=lambda one: one[0])

    @property
    def shapes(self) -> Shapes:
        """Of every update's terms."""
        return {name: term.shape for _, terms in self._by_hash[:1] for name, term in terms.items()}

    def of(self, name: str) -> F32:
        """One term of all: f32 (devices, ...)."""
        return np.stack([terms[name] for _, terms in self._by_hash])
