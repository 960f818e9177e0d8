"""Reception of contributions: offers, chunks, and the check of a complete contribution.

Law: a contribution is checked completely here, before the round machine gets its event.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fedclip_edge.coordinator.devices import Devices
from fedclip_edge.coordinator.publisher import Publisher
from fedclip_edge.coordinator.round_events import Arrived, Offered
from fedclip_edge.coordinator.run_state import RunState
from fedclip_edge.coordinator.uploads import Uploads
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.messages import Kept, Offer, Refused
from fedclip_edge.records import Contribution


@dataclass(frozen=True, eq=False)
class Arrival:
    """A complete, verified contribution, and the payload that it came in."""

    event: Arrived
    contribution: Contribution
    payload: bytes  # as uploaded, in the plan's codec_up


class UnfitError(PeerError):
    """A contribution cannot be added to its round; the refusal was sent to its device."""

    def __init__(self, round: int, reason: str) -> None:
        super().__init__(reason)
        self.round = round


@dataclass(eq=False)
class Receiver:
    """The contributions to one run, as they are received."""

    run_state: RunState
    publisher: Publisher
    uploads: Uploads
    devices: Devices

    def receive_offer(self, device: str, offer: Offer) -> Offered | None:
        """Handle an offer; returns the event for the round machine, or None if already answered.

        Raises PeerError if the blob is not an update, or is larger than any of the run can be.
        """
        run_state, sha256 = self.run_state, offer.blob.sha256
        if offer.run != run_state.run.id:
            refused = Refused(
                f"not for the open run {run_state.run.id}", "contribution", sha256=sha256
            )
            self.publisher.send(device, refused)
            return None
        if offer.blob.kind != "update":
            raise PeerError(f"an offer of a blob of kind {offer.blob.kind!r}, expected 'update'")
        if offer.blob.size_bytes > self._limit_bytes:
            raise PeerError(f"an offer of {offer.blob.size_bytes} bytes, limit {self._limit_bytes}")
        is_closed = offer.number <= run_state.model.round
        if is_closed and run_state.has_kept(device, offer.number, sha256):
            # The first answer was lost. The device needs it: its next update depends on it.
            self.publisher.send(device, Kept(run_state.run.id, offer.number, sha256))
            return None
        self.uploads.remember(device, offer)
        return Offered(device, offer.number, sha256)

    @cached_property
    def _limit_bytes(self) -> int:
        """An upper bound on the payload of a contribution to any exchange of this run.

        A contribution to a closed exchange is offered again if its answer was lost.
        """
        codec = self.run_state.run.plan.codec_up
        return max(
            wire.payload_limit_bytes(layout.delta, codec, layout.sums)
            for layout in self.run_state.schedule.layouts()
        )

    def receive_chunk(self, device: str, chunk: bytes, now: float) -> Arrival | None:
        """Add a chunk; returns the contribution that it completes, or None.

        `now` is monotonic, in seconds. Raises PeerError for a wrong chunk or a wrong hash, and
        UnfitError if the complete contribution cannot be added to its round.
        """
        payload = self.uploads.receive_chunk(device, chunk, now)
        if payload is None:
            return None
        offer = self.uploads.offer_of(device)
        self.uploads.release(device)
        plan, layout = self.run_state.run.plan, self.run_state.layout
        try:
            contribution = wire.unpack_contribution(
                payload, plan.codec_up, layout.delta, layout.sums
            )
            declared = self.devices.declared.get(device)
            self.run_state.check(device, offer.number, contribution, declared)
        except PeerError as error:
            refused = Refused(str(error), "contribution", sha256=offer.blob.sha256)
            self.publisher.send(device, refused)
            raise UnfitError(offer.number, str(error)) from error
        event = Arrived(device, offer.number, offer.blob.sha256)
        return Arrival(event, contribution, payload)

    def kept(self, device: str) -> Kept:
        """The answer that the contribution which the device offered last is on disk."""
        offer = self.uploads.offer_of(device)
        return Kept(self.run_state.run.id, offer.number, offer.blob.sha256)

    def refuse(self, device: str, reason: str) -> None:
        """Tell the device that the contribution it offered last is refused."""
        sha256, closed = self.uploads.offer_of(device).blob.sha256, self.run_state.model.round
        self.publisher.send(device, Refused(reason, "contribution", sha256=sha256, closed=closed))

    def request_missing(self, now: float) -> None:
        """Ask the devices that have a slot for their missing chunks, if that is due."""
        for device, want in self.uploads.poll_wants(now):
            self.publisher.send(device, want)
