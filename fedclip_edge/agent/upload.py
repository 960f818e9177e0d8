"""A device's contribution, from when it is made to when the coordinator has it or will not take it.

Sans-I/O but for the parked file: what to say comes back, and whether the last answer is still on
its way is passed in.

Laws:
- It is parked on disk before it is offered, and held until the coordinator has it on its own, or
  will never want it.
- No other one of its run is made before: what a kept one left behind (the codec's residual, the
  method's state) goes into the next, once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fedclip_edge import log
from fedclip_edge.agent.state_db import CarryOver, Parked, PendingUpdate
from fedclip_edge.protocol import chunks, codec, wire
from fedclip_edge.protocol.messages import Blob, Kept, Manifest, Offer, Refused, Want
from fedclip_edge.records import Contribution, Plan, Terms

REPEAT_S = 5.0  # without an answer for this long, say it again


def encode(contribution: Contribution, plan: Plan, residual: Terms) -> tuple[bytes, Terms]:
    """What is offered for a contribution with the residual before it, and the residual after it."""
    stored, left = codec.with_feedback(plan.codec_up, contribution.update.delta, residual)
    return wire.pack_contribution(contribution, plan.codec_up, stored), left


@dataclass(eq=False)
class _Offered:
    """A contribution that is neither kept nor refused yet."""

    update: PendingUpdate
    parcel: Blob
    said_at: float
    answered: bool = False  # chunks went out on this link
    unwanted: bool = False  # in this attempt; what becomes of it is known when its round is closed


@dataclass(eq=False)
class Upload:
    """What a device has made for the run it is in."""

    parked: Parked
    _offered: _Offered | None = None
    _settled_round: int = 0  # of this run, the last that this device has its answer for
    _packet_bytes: int | None = None  # the largest packet that the broker takes

    @property
    def unsettled(self) -> bool:
        """Whether a contribution waits for its answer."""
        return self._offered is not None

    def owes(self, round: int) -> bool:
        """Whether a contribution to the run's round may be made."""
        return self._offered is None and self._settled_round != round

    def resume_run(self, run: str) -> None:
        """What was made for `run` before a kill, or before another run came."""
        update, self._settled_round = self.parked.pending_update(run), self.parked.kept_round(run)
        self._offered = None
        if update is not None:
            self._offered = _Offered(update, self._parcel_of(update.payload), -math.inf)

    def go_back(self, manifest: Manifest) -> None:
        """What a coordinator has lost that came back with an old copy of its journal is made anew."""
        mine, closed = self._offered, manifest.model_round
        # Its base is the model of the round before it, or of one that is to be closed again.
        behind = 0 if mine is None else mine.update.round - closed
        is_other = mine is not None and manifest.model.sha256 != mine.update.base
        if mine is not None and (behind > 1 or (behind == 1 and is_other)):
            log.event("update_of_a_lost_round", run=manifest.run, round=mine.update.round)
            self.parked.resolve(manifest.run, mine.update.sha256, kept=False)
            self._offered = None
        if closed < self._settled_round and manifest.kept == "":
            self._settled_round = 0

    def link_came(self, packet_bytes: int | None) -> None:
        """What went out on the link before is lost; this one's broker takes packets of that size."""
        self._packet_bytes = packet_bytes
        if self._offered is not None:
            self._offered.answered = False
            self._offered.parcel = self._parcel_of(self._offered.update.payload)

    def hurry(self) -> None:
        """The offer is due at once, unless it is unwanted in this attempt."""
        if self._offered is not None:
            self._offered.said_at = -math.inf

    def moved_on(self, known: Manifest, manifest: Manifest) -> None:
        """The run went from `known` to `manifest`.

        What one attempt refused, the next may want; and once the round is closed, the answer is
        final, and the next contribution waits for it.
        """
        mine = self._offered
        if mine is not None and (
            manifest.round != known.round or (manifest.attempt != known.attempt and mine.unwanted)
        ):
            mine.unwanted = False
            self.hurry()

    def end(self, run: str) -> None:
        """The run is over."""
        self._offered = None
        self.parked.forget(run)

    def carry_over(self, run: str) -> CarryOver:
        """What the last kept contribution left for the next."""
        return self.parked.carry_over(run)

    def make(
        self, contribution: Contribution, plan: Plan, carried: CarryOver, state: Terms, now: float
    ) -> Offer:
        """Encodes what was trained with what is `carried`, parks it, and returns what to say.

        Raises DiskError.
        """
        body, residual = encode(contribution, plan, carried.residual)
        parcel = self._parcel_of(body)
        parked = PendingUpdate(
            contribution.run, contribution.round, contribution.base, parcel.sha256, body
        )
        self.parked.keep_update(parked, CarryOver(residual, state))
        self._offered = _Offered(parked, parcel, now)
        return Offer(contribution.run, contribution.round, parcel)

    def poll_offer(self, now: float, *, sending: bool) -> Offer | None:
        """The offer to say again now; `sending` while what was published is not acknowledged."""
        mine = self._offered
        if mine is None or mine.unwanted or now - mine.said_at < REPEAT_S:
            return None
        if mine.answered and sending:
            return None
        mine.said_at = now
        return Offer(mine.update.run, mine.update.round, mine.parcel)

    def chunks_for(self, want: Want, now: float, *, sending: bool) -> Iterator[bytes]:
        """What the coordinator asks for, as far as it is this contribution."""
        mine = self._offered
        if mine is None or mine.unwanted or mine.parcel.sha256 != want.sha256:
            return iter(())  # of an earlier round: whoever asked has moved on
        if mine.answered and sending:
            return iter(())  # the answer to the last time is still on its way; slow is not lost
        mine.said_at, mine.answered = now, True
        return chunks.split(mine.update.payload, mine.parcel, want.missing)

    def resolve(self, answer: Kept | Refused) -> None:
        """Forgets the contribution of that hash; nothing where it is another, or forgotten.

        A refusal while its round is not closed settles nothing: the same one may be kept yet.
        """
        mine = self._offered
        if mine is None or mine.parcel.sha256 != answer.sha256:
            return
        if isinstance(answer, Refused) and answer.closed < mine.update.round:
            mine.unwanted = True
            return
        self.parked.resolve(mine.update.run, answer.sha256, kept=isinstance(answer, Kept))
        self._settled_round, self._offered = mine.update.round, None

    def _parcel_of(self, body: bytes) -> Blob:
        """As it is offered over this link."""
        return chunks.fit_to_packets(chunks.blob_of(body), self._packet_bytes)
