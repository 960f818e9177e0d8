"""The coordinator's side of uploads: offers, upload slots, and missing chunks.

Sans-I/O: the clock is passed in, and messages to send are returned. `now` is monotonic, in seconds.

Laws:
- Only devices with an upload slot use memory for chunks; `upload_slots` limits their number.
- A slot holder without progress is asked again for its missing chunks. It loses the slot if it
  makes no progress for a whole lease.
- A slot holder whose link breaks keeps its slot and its chunks until another device needs the slot.
  Otherwise a device whose link breaks more often than an upload takes would never finish one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedclip_edge.coordinator.slots import Slots
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol.chunks import Incoming
from fedclip_edge.protocol.messages import Offer, Want

LEASE_S = 30.0  # a device without progress for this long loses its slot
REPAIR_S = 2.0  # after this long without progress, missing chunks are requested again


@dataclass(eq=False)
class Uploads:
    """The uploads of one run."""

    slots: Slots
    _offers: dict[str, Offer] = field(default_factory=dict)
    _incoming: dict[str, Incoming] = field(default_factory=dict)
    _asked_at: dict[str, float] = field(default_factory=dict)
    _away: dict[str, None] = field(default_factory=dict)  # offline slot holders, oldest first

    def remember(self, device: str, offer: Offer) -> None:
        """Remember the device's offer; no chunk is asked for before `request`."""
        self._offers[device] = offer
        self._away.pop(device, None)

    def offer_of(self, device: str) -> Offer:
        """The device's last offer; raises KeyError if it made none."""
        return self._offers[device]

    def request(self, device: str) -> None:
        """Queue the device for a slot; if it has one, its missing chunks are due at once."""
        self.slots.request(device)
        self._asked_at.pop(device, None)

    def poll_wants(self, now: float) -> list[tuple[str, Want]]:
        """The wants to send now, by device: to new slot holders, and to those without progress."""
        while self._away and self.slots.full and self.slots.waiting:
            self.release(next(iter(self._away)))
            self.slots.grant(now)
        self.slots.grant(now)
        asks, idle = [], frozenset(self.slots.idle(now, REPAIR_S))
        for device in self.slots.holders:
            if device in self._away:
                continue
            silent = device in idle
            asked_at = self._asked_at.get(device)
            if asked_at is None or (silent and now - asked_at >= REPAIR_S):
                self._asked_at[device] = now
                upload = self._incoming_of(device)
                asks.append((device, Want(upload.blob.sha256, upload.missing)))
        return asks

    def receive_chunk(self, device: str, payload: bytes, now: float) -> bytes | None:
        """Add a chunk; returns the whole payload if it was the last missing one, otherwise None.

        A chunk of a device without a slot is ignored. Raises PeerError for a wrong chunk, or for a
        complete payload with a wrong hash, which is then asked for again.
        """
        if not self.slots.holds(device):
            return None  # the device has lost its slot: no memory is reserved for its chunks
        upload = self._incoming_of(device)
        if not upload.add_chunk(payload):
            return None
        self.slots.progress(device, now)
        if not upload.complete:
            return None
        try:
            return upload.assemble()
        except PeerError:
            self._asked_at.pop(device, None)  # ask for all chunks again
            raise

    def leave(self, device: str) -> None:
        """Record that the device's link broke; it offers again once it is back."""
        if self.slots.holds(device):
            self._away[device] = None
        else:
            self.release(device)

    def release(self, device: str) -> None:
        """End the device's upload: free its slot and drop its chunks."""
        self._away.pop(device, None)
        self.slots.release(device)
        self._incoming.pop(device, None)
        self._asked_at.pop(device, None)

    def release_all(self) -> None:
        """End all uploads: the round is over."""
        for device in list(self._offers):
            self.release(device)

    def expire(self, now: float) -> tuple[str, ...]:
        """End the uploads without progress for a whole lease; returns their devices."""
        lost = self.slots.expire(now)
        for device in lost:
            self.release(device)
        return lost

    def _incoming_of(self, device: str) -> Incoming:
        blob = self._offers[device].blob
        upload = self._incoming.get(device)
        if upload is None or upload.blob != blob:
            upload = self._incoming[device] = Incoming(blob)
        return upload
