"""The device's contribution, from training until the coordinator keeps it or will not take it.

Sans-I/O but for the state file: messages are returned, and whether the last answer is still on its
way is passed in.

Laws:
- A contribution is on disk before it is offered. It stays until the coordinator has it on its own
  disk, or will never want it.
- No other one of its run is made before: what a kept one carries over (the codec's residual, the
  method's state) goes into the next, once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fedclip_edge import log
from fedclip_edge.agent.state_db import CarryOver, PendingUpdate, StateDb
from fedclip_edge.protocol import chunks, codec, wire
from fedclip_edge.protocol.messages import Blob, Kept, Manifest, Offer, Refused, Want
from fedclip_edge.records import Arrays, Contribution, Plan

REPEAT_S = 5.0  # without an answer for this long, the offer is repeated


def encode(contribution: Contribution, plan: Plan, residual: Arrays) -> tuple[bytes, Arrays]:
    """The payload of a contribution, given the residual before it, and the residual after it."""
    stored, left = codec.with_feedback(plan.codec_up, contribution.update.delta, residual)
    return wire.pack_contribution(contribution, plan.codec_up, stored), left


@dataclass(eq=False)
class _Pending:
    """A contribution that is neither kept nor refused yet."""

    update: PendingUpdate
    blob: Blob  # as it is offered over this link
    offered_at: float
    answered: bool = False  # chunks went out on this link
    unwanted: bool = False  # in this attempt; the round's end decides


@dataclass(eq=False)
class Upload:
    """The contributions of a device to the run it is in, one at a time."""

    state_db: StateDb
    _pending: _Pending | None = None
    _resolved_round: int = 0  # of this run, the last that this device has its answer for
    _packet_bytes: int | None = None  # the largest packet that the broker takes

    @property
    def is_pending(self) -> bool:
        """True while a contribution waits for its answer."""
        return self._pending is not None

    @property
    def pending(self) -> Blob | None:
        """The contribution that waits for its answer, as it is offered over this link."""
        return None if self._pending is None else self._pending.blob

    def owes(self, round: int) -> bool:
        """True where a contribution to the run's round may be made."""
        return self._pending is None and self._resolved_round != round

    def resume_run(self, run: str) -> None:
        """Continue with the update to `run` from before a kill, or before another run came."""
        update = self.state_db.pending_update(run)
        self._pending, self._resolved_round = None, self.state_db.kept_round(run)
        if update is not None:
            self._pending = _Pending(update, self._blob_of(update.payload), -math.inf)

    def go_back(self, manifest: Manifest) -> None:
        """Discard contributions lost by a coordinator restored from an old journal.

        They are trained again.
        """
        mine, closed = self._pending, manifest.model_round
        # Its base is the model of the round before it, or of one that is to be closed again.
        behind = 0 if mine is None else mine.update.round - closed
        is_other = mine is not None and manifest.model.sha256 != mine.update.base
        if mine is not None and (behind > 1 or (behind == 1 and is_other)):
            log.event("update_of_a_lost_round", run=manifest.run, round=mine.update.round)
            self.state_db.resolve(manifest.run, mine.update.sha256, kept=False)
            self._pending = None
        if closed < self._resolved_round and manifest.kept == "":
            self._resolved_round = 0

    def start_link(self, packet_bytes: int | None) -> None:
        """A new link: chunks sent on the one before are lost; its broker takes such packets."""
        self._packet_bytes = packet_bytes
        if self._pending is not None:
            self._pending.answered = False
            self._pending.blob = self._blob_of(self._pending.update.payload)

    def hurry(self) -> None:
        """Make the offer due at once, unless it is unwanted in this attempt."""
        if self._pending is not None:
            self._pending.offered_at = -math.inf

    def follow(self, known: Manifest, manifest: Manifest) -> None:
        """The run went from `known` to `manifest`.

        A contribution that one attempt refused, the next may want. Once the round is closed, the
        answer is final, and the next contribution waits for it.
        """
        mine = self._pending
        if mine is not None and (
            manifest.round != known.round or (manifest.attempt != known.attempt and mine.unwanted)
        ):
            mine.unwanted = False
            self.hurry()

    def end_run(self, run: str) -> None:
        """The run is over: forget what it left."""
        self._pending = None
        self.state_db.forget(run)

    def carry_over(self, run: str) -> CarryOver:
        """The carry-over of the last kept contribution."""
        return self.state_db.carry_over(run)

    def make_offer(
        self, contribution: Contribution, plan: Plan, before: CarryOver, state: Arrays, now: float
    ) -> Offer:
        """Encode a new contribution, put it on disk, and offer it.

        `before` is the carry-over of the last kept one, `state` the method's own for the next.
        Raises DiskError.
        """
        payload, residual = encode(contribution, plan, before.residual)
        blob = self._blob_of(payload)
        update = PendingUpdate(
            contribution.run, contribution.round, contribution.base, blob.sha256, payload
        )
        self.state_db.keep_update(update, CarryOver(residual, state))
        self._pending = _Pending(update, blob, now)
        return Offer(contribution.run, contribution.round, blob)

    def poll_offer(self, now: float, *, sending: bool) -> Offer | None:
        """The offer to repeat now; `sending` while published messages are not acknowledged."""
        mine = self._pending
        if mine is None or mine.unwanted or now - mine.offered_at < REPEAT_S:
            return None
        if mine.answered and sending:
            return None
        mine.offered_at = now
        return Offer(mine.update.run, mine.update.round, mine.blob)

    def chunks_for(self, want: Want, now: float, *, sending: bool) -> Iterator[bytes]:
        """The chunks that the coordinator asks for, as far as they are of this contribution."""
        mine = self._pending
        if mine is None or mine.unwanted or mine.blob.sha256 != want.sha256:
            return iter(())  # of an earlier round: the coordinator has moved on
        if mine.answered and sending:
            return iter(())  # the answer to the last time is still on its way; slow is not lost
        mine.offered_at, mine.answered = now, True
        return chunks.split(mine.update.payload, mine.blob, want.missing)

    def resolve(self, answer: Kept | Refused) -> None:
        """Forget the contribution of that hash; nothing where it is another, or forgotten.

        A refusal while its round is not closed resolves nothing: the same one may be kept yet.
        """
        mine = self._pending
        if mine is None or mine.blob.sha256 != answer.sha256:
            return
        if isinstance(answer, Refused) and answer.closed < mine.update.round:
            mine.unwanted = True
            return
        self.state_db.resolve(mine.update.run, answer.sha256, kept=isinstance(answer, Kept))
        self._resolved_round, self._pending = mine.update.round, None

    def _blob_of(self, payload: bytes) -> Blob:
        """The payload as it is announced over this link."""
        return chunks.fit_to_packets(chunks.blob_of(payload), self._packet_bytes)
