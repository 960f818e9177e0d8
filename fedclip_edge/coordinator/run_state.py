"""State of an open run: its model and the open round's sum, in step with the journal.

A round's sum is added to the float32 master model. Devices get the model through the plan's
`codec_down`, and their updates are relative to what they got.

Laws:
- A contribution is on disk before its round is closed. Those that the journal holds (`hold`) are in
  the sum before; if they never reach the disk, this process has ended with its sum.
- A closed round's model is on disk before it is announced. The transaction that commits it also
  names the contributions of earlier runs that counted, so that they can be added again.
- A run is finished only once its model file is written.
- After a kill at any moment, `open_run_state` restores the same model, byte for byte, and a sum of
  the same contributions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.numpy

from fedclip_edge import log, model_file
from fedclip_edge.coordinator import retention
from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.coordinator.journal_tables import LastContribution, Run, StoredModel
from fedclip_edge.errors import JournalError, PeerError
from fedclip_edge.learning.norm_bound import NormBound
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.learning.strategy import State, Total
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.exchange import open_exchange
from fedclip_edge.protocol.message_parts import Blob, Exchange
from fedclip_edge.records import (
    Codec,
    Contribution,
    Layout,
    Model,
    Plan,
    Shapes,
    in_order,
)

MASTER_CODEC: Codec = "fp32"  # lossless


@dataclass(frozen=True)
class ClosedRound:
    """The result of closing a round, besides the next model."""

    counted_last: tuple[str, ...]  # devices that counted with an earlier contribution
    dropped: int  # last contributions that are beyond `keep_sums_mb`, and deleted


@dataclass(eq=False)
class RunState:
    """An open run: its model, and the sum of the open round.

    Methods that write raise JournalError on a disk error, and RunError if another coordinator took
    over the journal.
    """

    run: Run
    journal: Journal
    schedule: Schedule
    model: Model  # the master, float32
    stored: StoredModel  # the same model, as published
    total: Total  # of the open round's updates
    bound: NormBound  # of the norm of an update in this exchange
    exchange: Exchange  # that is open, or opens next; the last one if every round is closed
    # The plan's rounds once the open exchange is closed, if the operator has changed them: that
    # exchange has the hash of the plan under which it was opened.
    next_rounds: int | None = None
    counts_absent: bool = False  # devices that are away count with their last contribution

    @property
    def version(self) -> str:
        """SHA-256 of the published model, as 64 hex digits."""
        return self.stored.sha256

    @property
    def blob(self) -> Blob:
        """The blob of the published model, in chunks of the full size (CHUNK_BYTES)."""
        return Blob(self.stored.sha256, len(self.stored.payload), "model")

    def kept(self) -> dict[str, str]:
        """The SHA-256 of each contribution on disk for the open round, by device."""
        return self.journal.contributions.kept(self.run.id, self.model.round + 1)

    def has_kept(self, device: str, round: int, sha256: str) -> bool:
        """True if the contribution with this hash was kept; its round may be open or closed."""
        return self.journal.contributions.has_kept(self.run.id, round, device, sha256)

    def check(
        self, device: str, round: int, contribution: Contribution, declared: int | None = None
    ) -> None:
        """Raise PeerError unless `device` may add this contribution to `round`.

        Its run, round, device and exchange must match, and its update must be within the bounds of
        the exchange and of the plan (`Total.check`), and one that the device can have made from
        the pictures that it declared (`check_update`).
        """
        self.check_head(device, round, contribution)
        self.total.check(contribution.update)
        self.schedule.check(self.model.round, contribution.update, declared)

    def check_head(self, device: str, round: int, contribution: Contribution) -> None:
        """Raise PeerError unless a contribution is that of `device` to `round` of this run."""
        expected = {
            "run": self.run.id,
            "round": round,
            "device": device,
            "exchange": self.exchange.sha256,
        }
        for name, value in expected.items():
            got = getattr(contribution, name)
            if got != value:
                raise PeerError(f"contribution: {name} is {str(got)[:80]!r}, expected {value!r}")

    def keep(self, contribution: Contribution, sha256: str, payload: bytes) -> float:
        """Give a checked contribution to the journal, then add it to the sum; returns its norm.

        `sha256` is the hash of `payload`, the contribution as it was uploaded.
        """
        update, device = contribution.update, contribution.device
        norm = self.total.check(update)
        self.journal.contributions.keep(
            self.run.id, contribution.round, device, sha256, payload, norm, update.weight
        )
        self.total.add(update)
        return norm

    @property
    def upcoming(self) -> Schedule:
        """The schedule that is in force once the open exchange is closed."""
        changes = self.next_rounds is not None
        return self.schedule.with_rounds(self.next_rounds or 0) if changes else self.schedule

    def extend(self, rounds: int) -> None:
        """Change the plan's number of rounds, once the open exchange is closed."""
        self.journal.runs.extend(self.run.id, rounds)
        self.next_rounds = rounds

    def abandon(self) -> None:
        """Mark the run as abandoned; it gets no model file."""
        self.journal.runs.finish(self.run.id, abandoned=True)

    @property
    def layout(self) -> Layout:
        """Shapes of the model, and of the answers to the open exchange."""
        return self.schedule.layout(self.model.round)

    def last_contributions(self) -> tuple[LastContribution, ...]:
        """The contributions of earlier runs that may count in the open round, by device."""
        if not self.counts_absent or not self._is_of_moments:
            return ()
        return self.journal.contributions.last(self.run.encoder_id, self.run.classes_digest)

    def close_round(
        self, *, decided: bool = True, lasts: Iterable[LastContribution] = ()
    ) -> ClosedRound:
        """Make the next model from the sum, commit it, and start the next exchange's sum.

        Without `decided` the open exchange is a vote that too few devices have answered. The
        contributions in `lasts` count too, if they are within the bounds of this round.
        """
        counted = [last for last in lasts if self._count_last(last)]
        step = self.schedule.steps[self.model.round]
        stays: retention.Stays = "nothing"
        if step.kind == "vote":
            stays = "answers" if self.schedule.is_closed_form else "nothing"
        elif self._is_of_moments and (self.counts_absent or self.schedule.is_closed_form):
            stays = "sums"
        if self.next_rounds is not None:
            self.schedule, self.next_rounds = self.upcoming, None
            self.run = replace(self.run, plan=self.schedule.plan)
        state: State = safetensors.numpy.load(self.stored.server_state)
        model, state = self.schedule.close(self.model, self.total, state, decided=decided)
        stored = stored_model(model, state, self.run.plan)
        dropped = self.journal.rounds.close(
            self.run.id, stored, stays, [last.id for last in counted]
        )
        self.model, self.stored = model, stored
        closed = model.round
        if closed in self.schedule.numbers(closed):
            self.bound = self.bound.after(self.journal.contributions.norms(self.run.id, closed))
        else:
            self.bound = _bound(self.run, self.journal, self.schedule, closed)
        self.total = self.schedule.total(closed, self.bound.value)
        self.exchange = _next_exchange(self.run, self.schedule, stored, self.bound)
        return ClosedRound(tuple(last.device for last in counted), dropped)

    @property
    def _is_of_moments(self) -> bool:
        return self.schedule.is_of_moments(self.model.round)

    def _count_last(self, last: LastContribution) -> bool:
        """Add an earlier contribution to the sum; False if it does not fit this round."""
        layout = self.layout
        payload = self.journal.contributions.payload_of(last)
        try:
            kept = wire.unpack_contribution(payload, last.codec, layout.delta, layout.sums)
            self.schedule.check(self.model.round, kept.update)
            self.total.add(kept.update)
        except PeerError as error:
            log.event("last_not_counted", device=last.device, run=last.run, reason=str(error))
            return False
        return True

    def finish(self) -> Path:
        """Write the run's model file, mark the run as finished, and return the file's path.

        Raises JournalError if either cannot be written; the run then stays unfinished.
        """
        path = self.write_model()
        self.journal.runs.finish(self.run.id)
        return path

    def write_model(self) -> Path:
        """Write the run's model file and return its path; JournalError if it cannot be written."""
        run = self.run
        path = model_file.path_of(self.journal.path, run.id)
        trained = model_file.TrainedModel(
            self.model, run.id, run.plan, run.encoder_id, run.classes_digest
        )
        try:
            model_file.write(path, trained)
        except OSError as error:
            raise JournalError(
                f"the model {path} cannot be written ({error.strerror or error}); free or repair "
                "the disk and start again; the model is safe in the journal"
            ) from error
        return path


def open_run_state(
    run: Run, journal: Journal, schedule: Schedule, *, counts_absent: bool = False
) -> RunState:
    """Read the state of a run from the journal, and add up the open exchange's contributions.

    Raises JournalError on a disk error, or if the model or a contribution is damaged.
    """
    plan, stored = run.plan, journal.rounds.newest_model(run.id)
    try:
        layout = schedule.layout(stored.round)
        model = master_model(stored, layout.parameters)
        bound = _bound(run, journal, schedule, model.round)
        total = schedule.total(model.round, bound.value)
        exchange = _next_exchange(run, schedule, stored, bound)
        course = journal.runs.course(run.id)
        state = RunState(
            run,
            journal,
            schedule,
            model,
            stored,
            total,
            bound,
            exchange,
            next_rounds=course.next_rounds,
            counts_absent=counts_absent,
        )
        # Of a round that the operator did not let end, the payloads are deleted.
        open_round = (
            () if course.is_over else journal.contributions.payloads(run.id, model.round + 1)
        )
        for device, payload in open_round:
            kept = wire.unpack_contribution(payload, plan.codec_up, layout.delta, layout.sums)
            # It was checked before it was kept, and has the same hash. To check the sums over
            # pictures again would take most of the time.
            state.check_head(device, model.round + 1, kept)
            state.total.add(kept.update)
    except PeerError as error:
        raise journal.rounds.damaged(str(error), run.id, stored.round + 1) from error
    return state


def _bound(run: Run, journal: Journal, schedule: Schedule, closed: int) -> NormBound:
    norms = {
        number: journal.contributions.norms(run.id, number) for number in schedule.numbers(closed)
    }
    return schedule.bound(closed, norms)


def _next_exchange(run: Run, schedule: Schedule, stored: StoredModel, bound: NormBound) -> Exchange:
    number = min(stored.round + 1, len(schedule.steps))
    return open_exchange(
        schedule.steps[number - 1].kind,
        run=run.id,
        number=number,
        model=stored.sha256,
        plan=run.plan,
        encoder_id=run.encoder_id,
        classes_digest=run.classes_digest,
        max_norm=bound.value,
    )


def stored_model(model: Model, server_state: State, plan: Plan) -> StoredModel:
    """Encode a float32 model for the journal: as published and, if that is lossy, as float32."""
    payload = wire.pack_model(model, plan.codec_down)
    lossless = plan.codec_down == MASTER_CODEC
    return StoredModel(
        round=model.round,
        sha256=hashlib.sha256(payload).hexdigest(),
        payload=payload,
        server_state=safetensors.numpy.save(in_order(server_state)),
        master=None if lossless else wire.pack_model(model, MASTER_CODEC),
    )


def master_model(stored: StoredModel, shapes: Shapes) -> Model:
    """Decode the float32 master of a stored model; raises PeerError if it is damaged.

    `shapes` are those that its parameters must have, by name.
    """
    return wire.unpack_model(stored.master or stored.payload, MASTER_CODEC, shapes)
