"""A coordinator's side of contributions: who may send, what came of it, and what fits the run.

Law: a contribution is checked whole here, before `round_machine.py` hears of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge.coordinator.publisher import Announcer
from fedclip_edge.coordinator.round_events import Arrived, Offered
from fedclip_edge.coordinator.run_state import Ledger
from fedclip_edge.coordinator.uploads import Uploads
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.messages import Kept, Offer, Refused
from fedclip_edge.records import Contribution


@dataclass(frozen=True, eq=False)
class Arrival:
    """A whole, verified contribution, and the bytes that it came in."""

    event: Arrived
    contribution: Contribution
    body: bytes


class UnfitError(PeerError):
    """What a device sent for a round cannot be added; it has been told."""

    def __init__(self, round: int, reason: str) -> None:
        super().__init__(reason)
        self.round = round


@dataclass(eq=False)
class Receiving:
    """The contributions of one run. Every method that takes something in raises PeerError."""

    ledger: Ledger
    voice: Announcer
    uploads: Uploads

    def take_offer(self, device: str, offer: Offer) -> Offered | None:
        """What the round has to decide; None where the device has its answer already."""
        ledger, sha256 = self.ledger, offer.parcel.sha256
        if offer.run != ledger.run.id:
            refused = Refused(f"this is {ledger.run.id}", final=False, sha256=sha256)
            self.voice.say_down(device, refused)
            return None
        layout = ledger.layout
        limit = wire.body_limit_bytes(layout.terms, ledger.run.plan.codec_up, layout.sums)
        if offer.parcel.size_bytes > limit:
            raise PeerError(f"offers {offer.parcel.size_bytes} bytes, limit {limit}")
        is_closed = offer.round <= ledger.model.round
        if is_closed and ledger.was_kept(device, offer.round, sha256):
            # The first answer was lost, and the device must know: its next update depends on it.
            self.voice.say_down(device, Kept(ledger.run.id, offer.round, sha256))
            return None
        self.uploads.remember(device, offer)
        return Offered(device, offer.round, sha256)

    def take_chunk(self, device: str, payload: bytes, now: float) -> Arrival | None:
        """The contribution that is whole with this chunk; raises UnfitError where it does not fit."""
        body = self.uploads.receive(device, payload, now)
        if body is None:
            return None
        offer = self.uploads.offer_of(device)
        self.uploads.release(device)
        plan, layout = self.ledger.run.plan, self.ledger.layout
        try:
            contribution = wire.unpack_contribution(body, plan.codec_up, layout.terms, layout.sums)
            self.ledger.check(device, offer.round, contribution)
        except PeerError as error:
            refused = Refused(str(error), final=False, sha256=offer.parcel.sha256)
            self.voice.say_down(device, refused)
            raise UnfitError(offer.round, str(error)) from error
        event = Arrived(device, offer.round, offer.parcel.sha256)
        return Arrival(event, contribution, body)

    def say_kept(self, device: str) -> None:
        """What the device offered last is on disk."""
        offer = self.uploads.offer_of(device)
        self.voice.say_down(device, Kept(self.ledger.run.id, offer.round, offer.parcel.sha256))

    def refuse(self, device: str, reason: str) -> None:
        """What the device offered last is not taken."""
        sha256, closed = self.uploads.offer_of(device).parcel.sha256, self.ledger.model.round
        self.voice.say_down(device, Refused(reason, final=False, sha256=sha256, closed=closed))

    def ask_due(self, now: float) -> None:
        """Asks whoever's turn it is for what is missing."""
        for device, want in self.uploads.due(now):
            self.voice.say_down(device, want)
