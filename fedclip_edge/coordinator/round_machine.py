"""The round machine: the rounds of a run as a pure state table.

Laws:
- Every decision about a round is in this file and in `attendance.py`, which do no I/O. `step` takes
  a state, an event and the time in seconds on any monotonic clock; it returns the next state and
  the actions.
- A pair of phase and event that is not in the table is an error.
- The first verified contribution per round and device wins. If it comes again, it is acknowledged
  again; a different one is refused.
- Between two attempts at a round, a contribution to it is neither accepted nor refused. The device
  offers it again once the round is open. If the contribution was refused, the device would not
  offer it again in the next attempt.
- An attempt at a round ends once every device of its cohort has contributed or is no longer waited
  for, and at the deadline at the latest. With a quorum the round then closes. Without one it is
  attempted again, with the contributions kept so far.
- A round waits only a limited time for each device: at most `grace_s` for a device that went
  offline, and until the deadline for a silent one. The silent device then counts as offline until
  it says hello again: its will may never be published, because a broker that crashes loses wills.
- A round that has a quorum does not wait for a device that is left out (`attendance.py`). A round
  waits for an unsteady device only if it has no quorum, and too few are online to open it again.
  `gathering` waits for neither.
- The first round opens once `devices` training devices are online. A later attempt or round needs
  the quorum of `devices`, or of the training devices that still count if they are fewer. With
  enough of them it waits for those that have just gone away, until `grace_s` after `gathering`
  began. It never waits for devices that only evaluate.
- So if one training device stays online whose contributions are accepted, a later round opens
  after LEFT_OUT_AFTER deadlines of `gathering` at the latest, counted from its hello.
- The run is abandoned only if ATTEMPTS attempts at a round got nothing, the last contribution of
  every training device was refused, and every enrolled device has been seen: one that has not may
  be a training device whose contributions are accepted.
- The run says for what it waits: at once and every WAITING_S in `gathering`, and every WAITING_S
  in an open round, or at once when a device that it waits for is away.
- A silent device gets the manifest again, at intervals that double. So a lost manifest at most
  doubles the time until the device reacts, and does not make it miss the whole attempt.
- A vote is a round to which all training devices are invited, and that is never attempted again:
  without a quorum it closes at its deadline, and the run's default model wins. A device that is
  away may come back until then.
- A closed round never reopens: the round number only grows.
- While the run is paused, no round opens and nobody misses a deadline of `gathering`. An open round
  goes on to its end.
- The operator may close a round with the contributions that are kept, with or without a quorum; the
  devices that had no time to contribute miss nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from fedclip_edge.coordinator import attendance
from fedclip_edge.coordinator.round_events import (
    Abandon,
    Acknowledge,
    Action,
    Announce,
    Arrived,
    Closed,
    CloseEarly,
    CloseRound,
    Drop,
    EndEarly,
    Enrolled,
    Event,
    Extend,
    Finish,
    Forget,
    GiveUp,
    Heard,
    Joined,
    Keep,
    Left,
    Offered,
    Pause,
    Rejected,
    Remind,
    Reported,
    Restored,
    Tick,
    Upload,
    Waiting,
)
from fedclip_edge.coordinator.round_state import LEFT_OUT_AFTER, RoundState
from fedclip_edge.protocol.cohort import EVERYBODY, NOBODY, cohort_hash
from fedclip_edge.protocol.messages import Phase

REMIND_S = 5.0  # a device without an offer for this long gets the manifest again
WAITING_S = 60.0  # what the run waits for is said again after this long
# Training is deterministic: a contribution that was refused this often will always be refused.
ATTEMPTS = 5


Step = tuple[RoundState, tuple[Action, ...]]


def step(state: RoundState, event: Event, now: float) -> Step:
    """Return the next state, and the actions in order; `now` is monotonic, in seconds.

    Raises LookupError, naming event, phase, round and run, for a pair of phase and event that is
    not in the table.
    """
    transition = _TABLE.get((state.phase, type(event)))
    if transition is None:
        raise LookupError(
            f"no transition for {event} in phase {state.phase!r}, "
            f"round {state.round} of {state.run}"
        )
    return transition(state, event, now)


def _join(state: RoundState, event: Joined, now: float) -> Step:
    trainers, evaluators = state.trainers - {event.device}, state.evaluators - {event.device}
    state = replace(
        state,
        trainers=trainers | {event.device} if event.trains else trainers,
        evaluators=evaluators | {event.device} if event.evaluates else evaluators,
        absent=state.absent - {event.device},
        away_since={d: t for d, t in state.away_since.items() if d != event.device},
        heard=state.heard | {event.device},
    )
    return _open_if_enough(state, now) if state.phase == "gathering" else (state, ())


def _leave(state: RoundState, event: Left, now: float) -> Step:
    device = event.device
    is_here = device in state.trainers | state.evaluators
    if event.for_good:
        if not is_here and device not in state.away_since.keys() | state.absent:
            return state, ()
        state = replace(
            state,
            trainers=state.trainers - {device},
            evaluators=state.evaluators - {device},
            absent=state.absent - {device},
            away_since={**state.away_since, device: -math.inf},
            missed={**state.missed, device: LEFT_OUT_AFTER},
        )
        return _close_if_complete(state, now) if state.phase == "open" else (state, ())
    if not is_here:
        return state, ()
    state = replace(
        state,
        trainers=state.trainers - {device},
        evaluators=state.evaluators - {device},
        absent=state.absent | ({device} & state.trainers),
        away_since={**state.away_since, device: now},
        departures=attendance.departed(state, device, now) if event.by_itself else state.departures,
    )
    return state, ()


def _offer(state: RoundState, event: Offered, now: float) -> Step:
    verdict = _judge(state, event)
    if verdict is not None:
        return state, (verdict,)
    state = replace(state, offered=state.offered | {event.device})
    return state, (Upload(event.device),)


def _early(state: RoundState, event: Offered | Arrived, now: float) -> Step:
    verdict = _judge(state, event)
    return state, () if verdict is None else (verdict,)


def _arrive(state: RoundState, event: Arrived, now: float) -> Step:
    verdict = _judge(state, event)
    if verdict is not None:
        return state, (verdict,)
    restored = (Restored(event.device),) if event.device in state.left_out else ()
    state = replace(
        state,
        kept={**state.kept, event.device: event.sha256},
        missed={device: n for device, n in state.missed.items() if device != event.device},
        refused=state.refused - {event.device},
    )
    state, actions = _close_if_complete(state, now)
    return state, (Keep(event.device), *restored, *actions)


def _judge(state: RoundState, event: Offered | Arrived) -> Acknowledge | Drop | None:
    """Return the answer to a contribution that is refused or already kept, None for any other."""
    if state.phase in ("final", "done"):
        return Drop(event.device, f"no round is open: the run is in phase {state.phase!r}")
    if event.round != state.round:
        reason = f"round {event.round} is not open; the current round is {state.round}"
        return Drop(event.device, reason)
    if event.device in state.kept:
        if state.kept[event.device] == event.sha256:
            return Acknowledge(event.device)
        return Drop(event.device, f"another contribution to round {event.round} was kept")
    if state.phase == "open" and event.device not in state.cohort:
        return Drop(event.device, f"the device is not in the cohort of round {event.round}")
    return None


def _close_if_complete(state: RoundState, now: float) -> Step:
    waiting = attendance.waiting(state, now)
    is_late = now >= state.deadline
    awaited = waiting - attendance.unsteady(state, now)
    if len(state.kept) >= state.quorum:
        awaited -= state.left_out
    elif state.is_vote:
        # There is no second attempt, so devices that are away may come back until the deadline.
        awaited = state.cohort - state.kept.keys() - state.rejected - state.left_out
    elif not attendance.is_enough(state):
        awaited = waiting  # the round could not open again without them
    if awaited and not is_late:
        return state, ()
    silent = waiting - state.offered - state.heard if is_late else frozenset[str]()
    missing = state.cohort - state.kept.keys()
    reasons = {device: _reason(state, device, silent) for device in missing}
    state = replace(
        state,
        trainers=state.trainers - silent,
        evaluators=state.evaluators - silent,
        absent=state.absent | silent,
    )
    state, missed = attendance.miss(state, reasons)
    before: tuple[Action, ...] = (*missed, *map(Forget, sorted(silent)))
    has_quorum = len(state.kept) >= state.quorum
    if has_quorum or state.is_vote:
        return state, (*before, CloseRound(has_quorum))
    if state.rejected:
        opened_at = state.deadline - state.rules.deadline_s
        state = replace(state, again_at=opened_at + attendance.pause_s(state))
    state = replace(_gathering(state, now), attempt=state.attempt + 1)
    is_hopeless = attendance.all_refused(state) and not attendance.unseen(state)
    if state.attempt >= ATTEMPTS and is_hopeless:
        return state, (*before, Abandon())
    state, actions = _open_if_enough(state, now)
    return state, (*before, *(actions or (Announce(),)))


def _reason(state: RoundState, device: str, silent: frozenset[str]) -> str:
    """The reason why an attempt ended without the device's contribution."""
    if device in state.rejected:
        return "refused"
    if device in state.away_since:
        return "offline"
    return "silent" if device in silent else "late"


def _gathering(state: RoundState, now: float, told_at: float | None = None) -> RoundState:
    return replace(
        state,
        phase="gathering",
        gathering_since=now,
        deadline=now + state.rules.deadline_s,
        told_at=told_at,
    )


def _remind(state: RoundState, awaited: frozenset[str], now: float) -> Step:
    waited_s = now - (state.deadline - state.rules.deadline_s)
    if waited_s < REMIND_S * 2**state.reminded:
        return state, ()
    silent = sorted(awaited - state.away_since.keys())
    return replace(state, reminded=state.reminded + 1), tuple(map(Remind, silent))


def _hear(state: RoundState, event: Heard | Reported, now: float) -> Step:
    return replace(state, heard=state.heard | {event.device}), ()


def _enrol(state: RoundState, event: Enrolled, now: float) -> Step:
    return replace(state, enrolled=event.devices), ()


def _pause(state: RoundState, event: Pause, now: float) -> Step:
    if state.paused == event.paused:
        return state, ()
    state = replace(state, paused=event.paused)
    if state.paused or state.phase != "gathering":
        return state, ()
    return _open_if_enough(_gathering(state, now), now)


def _extend(state: RoundState, event: Extend, now: float) -> Step:
    return replace(state, rounds=event.rounds, votes=event.votes), ()


def _close_early(state: RoundState, event: CloseEarly, now: float) -> Step:
    """Close the round; one without a contribution stays, but a vote then takes the default."""
    if not state.kept and not state.is_vote:
        return state, ()
    return state, (CloseRound(has_quorum=bool(state.kept)),)


def _end_early(state: RoundState, event: EndEarly, now: float) -> Step:
    closed = state.round - 1
    state = replace(state, round=closed, rounds=closed, kept={}, cohort=frozenset(), attempt=0)
    return _evaluate_last(state, now)


def _finish_now(state: RoundState, event: EndEarly, now: float) -> Step:
    return replace(state, phase="done"), (Announce(), Finish())


def _give_up(state: RoundState, event: GiveUp, now: float) -> Step:
    return replace(state, phase="done", kept={}, cohort=frozenset()), (Announce(),)


def _tick_gathering(state: RoundState, event: Tick, now: float) -> Step:
    if state.paused:
        return state, ()
    state, actions = _open_if_enough(state, now)
    if actions:
        return state, actions
    missed: tuple[Action, ...] = ()
    if now >= state.deadline and not attendance.is_first_opening(state):
        state, missed = _miss_gathering(state, now)
        state, actions = _open_if_enough(state, now)
        if actions:
            return state, (*missed, *actions)
    if state.told_at is not None and now - state.told_at < WAITING_S:
        return state, missed
    absent = state.absent
    if attendance.is_first_opening(state):
        absent |= state.invited - state.trainers - state.evaluators
    counted = attendance.counted_in(state)
    if attendance.is_pausing(state, now):
        counted -= state.refused
    said = Waiting(
        attendance.needed(state),
        len(counted),
        tuple(sorted(absent - state.left_out or absent)),
    )
    return replace(state, told_at=now), (*missed, said)


def _miss_gathering(state: RoundState, now: float) -> Step:
    """Count a missed deadline for each training device that is offline, and set the next one."""
    if not attendance.counted_in(state) & state.trainers:
        # All are offline, so none of them is to blame: the network or the power is gone.
        return _gathering(state, now, told_at=state.told_at), ()
    rules = state.rules
    # Devices that take turns would each be online at one of the deadlines.
    times = max(1, math.floor((now - state.gathering_since) / rules.deadline_s))
    state = replace(state, deadline=now + rules.deadline_s)
    return attendance.miss(state, dict.fromkeys(state.absent, "offline"), times)


def _reject(state: RoundState, event: Rejected, now: float) -> Step:
    if event.round != state.round or event.device in state.kept:
        return state, ()
    state = replace(
        state,
        rejected=state.rejected | {event.device},
        refused=state.refused | {event.device},
    )
    return _close_if_complete(state, now)


def _tick_open(state: RoundState, event: Tick, now: float) -> Step:
    state, actions = _close_if_complete(state, now)
    if actions:
        return state, actions
    awaited = state.cohort - state.kept.keys() - state.rejected
    state, reminders = _remind(state, awaited - state.offered, now)
    waiting = attendance.waiting(state, now)
    opened_at = state.deadline - state.rules.deadline_s
    if state.told_at is None:
        is_due = now - opened_at >= WAITING_S or bool(waiting & state.away_since.keys())
    else:
        is_due = now - state.told_at >= WAITING_S
    if not is_due:
        return state, reminders
    missing = tuple(sorted(waiting - state.left_out or waiting))
    said = Waiting(state.quorum, len(state.kept), missing)
    return replace(state, told_at=now), (*reminders, said)


def _closed(state: RoundState, event: Closed, now: float) -> Step:
    state = replace(state, kept={}, cohort=frozenset(), attempt=0)
    if state.round == state.rounds:
        return _evaluate_last(state, now)
    state = replace(_gathering(state, now), round=state.round + 1)
    state, actions = _open_if_enough(state, now)
    return state, actions or (Announce(),)


def _evaluate_last(state: RoundState, now: float) -> Step:
    deadline = now + state.rules.deadline_s
    state = replace(state, phase="final", deadline=deadline, reminded=0)
    state, actions = _finish_if_evaluated(state, now)
    return state, (Announce(), *actions)


def _open_if_enough(state: RoundState, now: float) -> Step:
    if state.paused:
        return state, ()
    if (
        attendance.is_first_opening(state)
        and not state.invited <= state.trainers | state.evaluators
    ):
        return state, ()
    if not attendance.is_enough(state) or attendance.is_pausing(state, now):
        return state, ()
    # A device that has just gone offline may be back in a moment.
    away = (state.away_since.keys() & state.absent) - state.kept.keys() - state.left_out
    away -= attendance.given_up(state, now) | attendance.unsteady(state, now)
    patience_s = min(state.rules.grace_s, state.rules.deadline_s)
    if away and now < state.gathering_since + patience_s:
        return state, ()
    return _open(state, now)


def _open(state: RoundState, now: float) -> Step:
    free = state.trainers - state.kept.keys()
    hashes = {d: cohort_hash(state.run, state.round, d) for d in free}
    chosen, threshold = sorted(hashes, key=hashes.__getitem__), EVERYBODY
    if state.rules.cohort and not state.is_vote:
        # Only the largest hash of the cohort is published, not a list of devices. The cohort has
        # exactly the configured size; devices kept from an earlier attempt count towards it.
        # Devices that are left out take no seat from the others, and come on top of them.
        seats = max(0, state.rules.cohort - len(state.kept))
        counting = [i for i, device in enumerate(chosen) if device not in state.left_out]
        last = counting[:seats][-1:] or [-1]
        chosen = chosen[: max(last[0] + 1, seats)] if seats else []
        threshold = hashes[chosen[-1]] if chosen else NOBODY
    state = replace(
        state,
        phase="open",
        rejected=frozenset(),
        offered=frozenset(),
        heard=frozenset(),
        reminded=0,
        told_at=None,
        cohort=frozenset(chosen) | state.kept.keys(),
        threshold=threshold,
        deadline=now + state.rules.deadline_s,
    )
    return state, (Announce(),)


def _report_final(state: RoundState, event: Reported, now: float) -> Step:
    if event.round != state.round:
        return state, ()
    return _finish_if_evaluated(replace(state, reported=state.reported | {event.device}), now)


def _tick_final(state: RoundState, event: Tick, now: float) -> Step:
    state, actions = _finish_if_evaluated(state, now)
    return (state, actions) if actions else _remind(state, state.evaluators - state.reported, now)


def _finish_if_evaluated(state: RoundState, now: float) -> Step:
    awaited = (state.evaluators | state.away_since.keys()) - attendance.given_up(state, now)
    if awaited <= state.reported or now >= state.deadline:
        return replace(state, phase="done"), (Announce(), Finish())
    return state, ()


def _nothing(state: RoundState, event: Event, now: float) -> Step:
    return state, ()


_TABLE: Mapping[tuple[Phase, type[Event]], Callable[..., Step]] = {
    ("gathering", Joined): _join,
    ("gathering", Left): _leave,
    ("gathering", Enrolled): _enrol,
    ("gathering", Heard): _nothing,
    ("gathering", Offered): _early,
    ("gathering", Arrived): _early,
    ("gathering", Rejected): _nothing,
    ("gathering", Closed): _closed,  # after CloseEarly
    ("gathering", Reported): _nothing,
    ("gathering", Tick): _tick_gathering,
    ("gathering", Pause): _pause,
    ("gathering", Extend): _extend,
    ("gathering", CloseEarly): _close_early,
    ("gathering", EndEarly): _end_early,
    ("gathering", GiveUp): _give_up,
    ("open", Joined): _join,
    ("open", Left): _leave,
    ("open", Enrolled): _enrol,
    ("open", Heard): _hear,
    ("open", Offered): _offer,
    ("open", Arrived): _arrive,
    ("open", Rejected): _reject,
    ("open", Closed): _closed,
    ("open", Reported): _hear,
    ("open", Tick): _tick_open,
    ("open", Pause): _pause,
    ("open", Extend): _extend,
    ("open", CloseEarly): _close_early,
    ("open", EndEarly): _end_early,
    ("open", GiveUp): _give_up,
    ("final", Joined): _join,
    ("final", Left): _leave,
    ("final", Enrolled): _enrol,
    ("final", Heard): _nothing,
    ("final", Offered): _offer,
    ("final", Arrived): _arrive,
    ("final", Rejected): _nothing,
    ("final", Reported): _report_final,
    ("final", Tick): _tick_final,
    ("final", EndEarly): _finish_now,
    ("final", GiveUp): _give_up,
    ("done", Joined): _nothing,
    ("done", Left): _nothing,
    ("done", Enrolled): _nothing,
    ("done", Heard): _nothing,
    ("done", Offered): _offer,
    ("done", Arrived): _arrive,
    ("done", Rejected): _nothing,
    ("done", Reported): _nothing,
    ("done", Tick): _nothing,
}
