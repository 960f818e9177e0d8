"""Computation of a run's models again, without a device that was removed.

A closed-form model follows from exact sums, so it can be computed again without one of them. The
answers to a vote are answers to one ballot. If the removal changes the ballot, they no longer count
and the devices vote again. Of a run that cannot be continued, because a later one has begun, the
default candidate is taken instead.

Laws:
- Given the same contributions and answers of the other devices, the run's models are those of a
  fleet that never had the device, byte for byte.
- A contribution counts only in the exchange that it was made for: the hash of the exchange is in
  it.
- A model that is trained in rounds is never computed again: every later update depends on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedclip_edge.coordinator import removal, retention
from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.coordinator.journal_tables import ZERO_SHOT, Run
from fedclip_edge.coordinator.run_state import RunState, open_run_state, stored_model
from fedclip_edge.coordinator.server import Basis
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.protocol import wire
from fedclip_edge.storage.sqlite import Connection


@dataclass(frozen=True)
class Solved:
    """A run whose models were computed again."""

    run: str
    devices: int  # whose contributions count in it now
    closed: int
    exchanges: int
    is_open: bool  # the devices have to vote again, or to contribute again


def hindrance(
    journal: Journal,
    database: Connection,
    run: Run,
    first: int,
    device: str,
    basis: Basis,
) -> str | None:
    """Say why the models of a run cannot be computed again; None if they can."""
    schedule = schedule_of(basis, run)
    if schedule is None:
        return "it was made with another bundle than the one in fleet.toml"
    origin = journal.runs.course(run.id).started_from
    if origin != ZERO_SHOT and not any(n < first for n in journal.rounds.whole(run.id)):
        return f"the model of {origin}, from which it started, is no longer in the journal"
    base = _base(journal, run, first)
    rounds = [
        closed
        for closed in range(base, journal.rounds.closed(run.id))
        if schedule.steps[closed].kind != "vote"
    ]
    for closed in rounds:
        if not schedule.is_of_moments(closed):
            return f"{run.plan.method} is trained in rounds, and " + (
                "every later update was made from a model with its contributions"
                if closed + 1 >= first
                else "the model before its first contribution is no longer in the journal"
            )
    for closed in rounds:
        gone = removal.without_payload(database, run.id, closed + 1, device)
        if gone:
            names = ", ".join(gone[:3]) + (", ..." if len(gone) > 3 else "")
            return (
                f"the contributions of other devices to it ({names}) are no longer in the journal: "
                "a later run replaced them, or keep_sums_mb is too small"
            )
    return None


def solve_again(
    journal: Journal,
    database: Connection,
    run: Run,
    first: int,
    basis: Basis,
    *,
    quorum: float,
    without_vote: bool,
) -> Solved:
    """Compute the models of a run again, from the contributions that are left in the journal.

    `first` is the first exchange in which the device counted. Without `without_vote`, the devices
    vote again if the ballot changes.
    """
    schedule = schedule_of(basis, run)
    assert schedule is not None
    exchanges, closed = len(schedule.steps), journal.rounds.closed(run.id)
    course, newest = journal.runs.course(run.id), journal.runs.last()
    # A run that was ended by the operator, or that a later one follows, is not continued.
    is_whole = course.state == "done" and closed == exchanges
    continues = newest == run and (not course.is_over or is_whole)
    base = _base(journal, run, first)
    _go_back(journal, database, run, base, schedule)
    removal.reopen(database, run.id)
    devices = removal.devices_in(database, run.id)
    state = open_run_state(run, journal, schedule)
    while state.model.round < closed:
        number, votes = state.model.round + 1, len(state.kept())
        if schedule.steps[number - 1].kind == "vote":
            if continues and not without_vote:
                break
            state.close_round(decided=votes >= max(1, math.ceil(quorum * len(devices))))
        else:
            lasts = journal.contributions.counted_last(run.id, number)
            if not votes and not lasts:
                break
            removal.remove_counted(database, run.id, number)
            state.close_round(lasts=lasts)
        if not _are_answers(journal, database, state):
            removal.remove_answers(database, run.id, number)
        state = open_run_state(run, journal, schedule)
    if base == 0:  # only contributions that are in the journal are in the models now
        removal.empty_run(database, run.id)
    is_open = continues and state.model.round < exchanges
    if not is_open and course.is_over:
        removal.end_again(database, run.id, course)
        retention.end_run(database, run.id)
    elif not is_open:
        journal.runs.finish(run.id)
    return Solved(run.id, len(devices), state.model.round, exchanges, is_open)


def empty_run(journal: Journal, database: Connection, run: Run, basis: Basis) -> None:
    """Delete all models of a run; it ends with that of a run from zero-shot CLIP.

    Its own first model may be the one that it started from, which contains the device.
    """
    schedule = schedule_of(basis, run)
    if schedule is None:
        removal.delete_run(database, run.id)
        return
    _go_back(journal, database, run, -1, schedule)
    removal.empty_run(database, run.id)
    if not journal.runs.course(run.id).is_over:
        journal.runs.finish(run.id, abandoned=True)


def schedule_of(basis: Basis, run: Run) -> Schedule | None:
    """The exchanges of a run; None if it has another encoder or other classes."""
    if (run.encoder_id, run.classes_digest) != (basis.encoder_id, basis.classes.digest):
        return None
    return Schedule(run.plan, basis.classes, basis.dim)


def _base(journal: Journal, run: Run, first: int) -> int:
    """The number of exchanges after which computing the run again begins."""
    return max((n for n in journal.rounds.whole(run.id) if n < first), default=0)


def _are_answers(journal: Journal, database: Connection, state: RunState) -> bool:
    """Return whether the contributions to the next exchange are answers to it, and all there."""
    number = state.model.round + 1
    if removal.without_payload(database, state.run.id, number, ""):
        return False
    codec, layout = state.run.plan.codec_up, state.layout
    for _, payload in journal.contributions.payloads(state.run.id, number):
        made = wire.unpack_contribution(payload, codec, layout.delta, layout.sums)
        return made.exchange == state.exchange.sha256  # all were made for one exchange
    return True


def _go_back(
    journal: Journal, database: Connection, run: Run, round: int, schedule: Schedule
) -> None:
    """Delete the models after an exchange; make the initial one again if it is not there."""
    removal.remove_models(database, run.id, round)
    if not journal.rounds.whole(run.id):
        removal.remove_models(database, run.id, -1)
        journal.rounds.add_model(run.id, stored_model(schedule.initial(), {}, run.plan))
