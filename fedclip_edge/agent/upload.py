"""Upload of a device's contribution, until the coordinator keeps or permanently refuses it.

Sans-I/O except for the state file: messages are returned. The clock (`now`, monotonic, in seconds)
and `sending` are passed in; `sending` is true while the broker has not acknowledged all messages.

Laws:
- A contribution is on disk before it is offered. It stays until the coordinator has it on its own
  disk or refuses it permanently.
- Until then, no other contribution to the run is made: the residual of a kept contribution, which
  the codec has lost, goes into the next one, exactly once.
- A contribution that was made under a lower `min_per_class` than now is not offered again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from fedclip_edge import log
from fedclip_edge.agent.clipping import store_within
from fedclip_edge.agent.lost_parts import LostParts
from fedclip_edge.agent.state_db import PendingUpdate, StateDb
from fedclip_edge.protocol import chunks, wire
from fedclip_edge.protocol.chunks import Ranges
from fedclip_edge.protocol.message_parts import Blob
from fedclip_edge.protocol.messages import (
    Kept,
    Manifest,
    Offer,
    Refused,
    Want,
)
from fedclip_edge.records import Arrays, Contribution, Plan

REPEAT_S = 5.0  # without an answer for this long, the offer is repeated


def encode(
    contribution: Contribution, plan: Plan, residual: Arrays, max_norm: float
) -> tuple[bytes, Arrays]:
    """Encode a contribution in the plan's codec_up; returns its payload and the new residual.

    `residual` is the part of the last kept update that the codec lost. It is added to the delta
    before encoding. Both residuals are float32 arrays with the shapes of the delta, by name, or
    empty. The delta is scaled down to the round's `max_norm`.
    """
    stored, left = store_within(plan.codec_up, contribution.update, residual, max_norm)
    return wire.pack_contribution(contribution, plan.codec_up, stored), left


@dataclass(eq=False)
class _Pending:
    """A contribution that is neither kept nor permanently refused."""

    update: PendingUpdate
    blob: Blob  # with the chunk size of this link
    offered_at: float
    answered: bool = False  # chunks were sent on this link
    unwanted: bool = False  # refused in this attempt; the answer is final once the round is closed
    wanted: Ranges = ()  # the chunks of the last answer


@dataclass(eq=False)
class Upload:
    """The contributions of a device to its current run, one at a time.

    Methods that write the state file raise DiskError if it cannot be written.
    """

    state_db: StateDb
    min_per_class: int  # the privacy floor that the device's owner set
    _pending: _Pending | None = None
    _resolved_round: int = 0  # the last round of this run with a final answer
    _packet_bytes: int | None = None  # the largest packet that the broker takes
    _lost: LostParts = field(default_factory=lambda: LostParts("update"))

    @property
    def pending(self) -> Blob | None:
        """The blob of the pending contribution in this link's chunk size; None without one."""
        return None if self._pending is None else self._pending.blob

    def owes(self, round: int) -> bool:
        """True if the device may make a contribution to this round of the run."""
        return self._pending is None and self._resolved_round != round

    def resume_run(self, run: str) -> None:
        """Continue with the update to `run` that was pending before a restart or another run."""
        update = self.state_db.pending_update(run)
        self._pending, self._resolved_round = None, self.state_db.kept_round(run)
        if update is not None and update.min_per_class < self.min_per_class:
            log.event("update_withdrawn", run=run, round=update.round)
            self.state_db.resolve(run, update.sha256, kept=False)
        elif update is not None:
            self._pending = _Pending(update, self._blob_of(update.payload), -math.inf)

    def go_back(self, manifest: Manifest) -> None:
        """Discard contributions to rounds that the run lost, so that they are trained again.

        A run loses contributions if its coordinator is restored from an old copy of its journal.
        """
        mine, closed = self._pending, manifest.closed
        # The update depends on the model of the round before its own. If that round was lost, the
        # run closes it again, perhaps with another model.
        behind = 0 if mine is None else mine.update.round - closed
        is_other = mine is not None and manifest.exchange.sha256 != mine.update.exchange
        if mine is not None and (behind > 1 or (behind == 1 and is_other)):
            log.event("update_of_a_lost_round", run=manifest.run, round=mine.update.round)
            self.state_db.resolve(manifest.run, mine.update.sha256, kept=False)
            self._pending = None
        if closed < self._resolved_round and manifest.kept == "":
            self._resolved_round = 0

    def start_link(self, packet_bytes: int | None) -> None:
        """Prepare for a new link; chunks sent on an earlier link count as lost.

        `packet_bytes` is the size of the largest packet that its broker takes; None for no limit.
        """
        self._packet_bytes = packet_bytes
        if self._pending is not None:
            self._pending.answered = False
            self._pending.blob = self._blob_of(self._pending.update.payload)

    def hurry(self) -> None:
        """Have the offer repeated immediately, unless it was refused in this attempt."""
        if self._pending is not None:
            self._pending.offered_at = -math.inf

    def follow(self, known: Manifest, manifest: Manifest) -> None:
        """Follow the run from the manifest `known` to the next one.

        A contribution that was refused in one attempt is offered again in the next one, which may
        accept it. It is also offered again once its round is closed: the answer is then final, and
        the device can make its next contribution only after it.
        """
        mine = self._pending
        if mine is not None and (
            manifest.exchange.number != known.exchange.number
            or (manifest.attempt != known.attempt and mine.unwanted)
        ):
            mine.unwanted = False
            self.hurry()

    def end_run(self, run: str) -> None:
        """Forget the contributions and the residual of a run that is over."""
        self._pending = None
        self.state_db.forget(run)

    def make_offer(self, contribution: Contribution, manifest: Manifest, now: float) -> Offer:
        """Encode a new contribution, put it on disk, and return its offer.

        It includes the residual of the last kept one. Raises DiskError if the file cannot be read
        or written.
        """
        before, max_norm = self.state_db.residual(contribution.run), manifest.exchange.max_norm
        payload, residual = encode(contribution, manifest.plan, before, max_norm)
        blob = self._blob_of(payload)
        update = PendingUpdate(
            contribution.run,
            contribution.round,
            contribution.exchange,
            blob.sha256,
            payload,
            self.min_per_class,
        )
        self.state_db.keep_update(update, residual)
        self._pending = _Pending(update, blob, now)
        return Offer(contribution.run, contribution.round, blob)

    def poll_offer(self, now: float, *, sending: bool) -> Offer | None:
        """The offer to repeat now, or None."""
        mine = self._pending
        if mine is None or mine.unwanted or now - mine.offered_at < REPEAT_S:
            return None
        if mine.answered and sending:
            return None
        mine.offered_at = now
        return Offer(mine.update.run, mine.update.round, mine.blob)

    def chunks_for(self, want: Want, now: float, *, sending: bool) -> Iterator[bytes]:
        """The wanted chunks of the pending contribution.

        Empty if the want names another contribution, if this one was refused in this attempt, or
        while chunks of an earlier answer are still being sent.
        """
        mine = self._pending
        if mine is None or mine.unwanted or mine.blob.sha256 != want.sha256:
            return iter(())  # not the pending contribution, or refused in this attempt
        if mine.answered and sending:
            return iter(())  # the earlier chunks are still being sent: slow, but not lost
        if want.missing != mine.wanted:
            self._lost.arrived()
        elif mine.answered:  # the broker has acknowledged them on this link
            self._lost.requested(chunks.count_chunks(want.missing))
        mine.offered_at, mine.answered, mine.wanted = now, True, want.missing
        return chunks.split(mine.update.payload, mine.blob, want.missing)

    def resolve(self, answer: Kept | Refused) -> None:
        """Resolve the pending contribution if the answer names its hash; otherwise do nothing.

        A refusal before its round is closed is not final, and resolves nothing: the same
        contribution may still be kept.
        """
        mine = self._pending
        if mine is None or mine.blob.sha256 != answer.sha256:
            return
        if isinstance(answer, Refused) and answer.closed < mine.update.round:
            mine.unwanted = True
            return
        self.state_db.resolve(mine.update.run, answer.sha256, kept=isinstance(answer, Kept))
        self._resolved_round, self._pending = mine.update.round, None
        self._lost.arrived()

    def _blob_of(self, payload: bytes) -> Blob:
        """The blob of the payload, in chunks that fit this link's packets."""
        return chunks.fit_to_packets(chunks.blob_of(payload, "update"), self._packet_bytes)
