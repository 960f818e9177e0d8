"""A device's side of a model: what came of it, and when to ask for the rest.

Sans-I/O: the clock is passed in, and what to say comes back; `uploads.py` is the other direction.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge.messaging.messages import Parcel, Want
from fedclip_edge.messaging.transfer import Incoming, Ranges, first

REPAIR_S = 1.0  # without a chunk for this long, ask for what is missing
_REPAIR_MAX_S = 16.0  # 120 KiB at 8 kB/s
_REPAIR_CHUNKS = 4


@dataclass(eq=False)
class Download:
    """One model at a time; how patient it is with the link outlasts each."""

    _incoming: Incoming | None = None
    _chunk_at: float = 0.0
    _asked_for: str = ""  # the model whose chunks were asked for last
    _repair_s: float = REPAIR_S

    def expect(self, parcel: Parcel, since: float) -> None:
        """From now on its chunks count, and those of no other."""
        if self._incoming is None or self._incoming.parcel != parcel:
            self._incoming = Incoming(parcel)
            self._chunk_at = since

    def hurry(self, now: float) -> None:
        """Its broadcast was missed: all that is missing is due at once."""
        self._chunk_at, self._asked_for = now - self._repair_s, ""

    def receive(self, payload: bytes, now: float) -> None:
        """Takes one chunk in; raises PeerError for a wrong one."""
        if self._incoming is not None and self._incoming.receive(payload):
            self._chunk_at = now

    def has(self, parcel: Parcel) -> bool:
        """Whether all of its chunks are here."""
        incoming = self._incoming
        return incoming is not None and incoming.parcel == parcel and incoming.complete

    def due(self, now: float) -> Want | None:
        """What to ask for now."""
        if self._incoming is None or now - self._chunk_at < self._repair_s:
            return None
        self._chunk_at = now
        return Want(self._incoming.parcel.sha256, self._missing(self._incoming))

    def take(self) -> bytes:
        """The whole. Raises PeerError where its hash is another; all of it is then fetched anew."""
        assert self._incoming is not None
        incoming, self._incoming = self._incoming, None
        body = incoming.take()
        self._repair_s = max(REPAIR_S, self._repair_s / 2)
        return body

    def _missing(self, incoming: Incoming) -> Ranges:
        """All gaps at first; after that a few and less and less often, since a link that is slower
        than a chunk in REPAIR_S would otherwise carry everything again and again.
        """
        if self._asked_for != incoming.parcel.sha256:
            self._asked_for = incoming.parcel.sha256
            return incoming.missing
        self._repair_s = min(2 * self._repair_s, _REPAIR_MAX_S)
        return first(incoming.missing, _REPAIR_CHUNKS)
