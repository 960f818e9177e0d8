"""The coordinator's side of uploads: who offered what, who sends now, what is still missing.

Sans-I/O: the clock is passed in, and what to say comes back. Laws: memory is taken for devices
with a slot only, so for a few at a time whatever the fleet's size; a holder without progress is
asked again for what is missing, and loses the slot after a whole lease. A holder whose link went
keeps its slot, and what came so far, until another device needs the slot: a link that breaks more
often than an upload takes would otherwise never finish one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedclip_edge.coordinator.slots import Slots
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol.chunks import Incoming
from fedclip_edge.protocol.messages import Offer, Want

LEASE_S = 30.0
REPAIR_S = 2.0


@dataclass(eq=False)
class Uploads:
    """The uploads of one run."""

    slots: Slots
    _offers: dict[str, Offer] = field(default_factory=dict)
    _incoming: dict[str, Incoming] = field(default_factory=dict)
    _asked_at: dict[str, float] = field(default_factory=dict)
    _away: dict[str, None] = field(default_factory=dict)  # holders, in the order of their leaving

    def remember(self, device: str, offer: Offer) -> None:
        """Remember what the device has; nothing is asked for before `request`."""
        self._offers[device] = offer
        self._away.pop(device, None)

    def offer_of(self, device: str) -> Offer:
        """The device's last offer."""
        return self._offers[device]

    def request(self, device: str) -> None:
        """The offered blob is wanted. Asked again, it is asked for again at once."""
        self.slots.request(device)
        self._asked_at.pop(device, None)

    def poll_wants(self, now: float) -> list[tuple[str, Want]]:
        """Whom to ask for what now: new holders, and holders that fell silent."""
        while self._away and self.slots.full and self.slots.waiting:
            self.release(next(iter(self._away)))
            self.slots.grant(now)
        self.slots.grant(now)
        asks = []
        for device in self.slots.holders:
            if device in self._away:
                continue
            silent = device in self.slots.idle(now, REPAIR_S)
            asked_at = self._asked_at.get(device)
            if asked_at is None or (silent and now - asked_at >= REPAIR_S):
                self._asked_at[device] = now
                upload = self._incoming_of(device)
                asks.append((device, Want(upload.blob.sha256, upload.missing)))
        return asks

    def receive_chunk(self, device: str, payload: bytes, now: float) -> bytes | None:
        """Add a chunk; returns the whole payload when it was the last one.

        Raises PeerError for a wrong chunk, or, once everything is here, a wrong hash.
        """
        if not self.slots.holds(device):
            return None  # late, and no memory is set aside for it
        upload = self._incoming_of(device)
        if not upload.add_chunk(payload):
            return None
        self.slots.progress(device, now)
        if not upload.complete:
            return None
        try:
            return upload.assemble()
        except PeerError:
            self._asked_at.pop(device, None)  # all of it again
            raise

    def leave(self, device: str) -> None:
        """The device's link is gone; it offers again when it is back."""
        if self.slots.holds(device):
            self._away[device] = None
        else:
            self.release(device)

    def release(self, device: str) -> None:
        """The device's upload is over, one way or another."""
        self._away.pop(device, None)
        self.slots.release(device)
        self._incoming.pop(device, None)
        self._asked_at.pop(device, None)

    def release_all(self) -> None:
        """The round is over."""
        for device in list(self._offers):
            self.release(device)

    def expire(self, now: float) -> tuple[str, ...]:
        """Takes the slot of whoever made no progress for a lease; returns them."""
        lost = self.slots.expire(now)
        for device in lost:
            self.release(device)
        return lost

    def _incoming_of(self, device: str) -> Incoming:
        blob = self._offers[device].parcel
        upload = self._incoming.get(device)
        if upload is None or upload.blob != blob:
            upload = self._incoming[device] = Incoming(blob)
        return upload
