"""The phase `open` of a round: contributions come until the attempt ends.

Laws:
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
- The run is abandoned only if ATTEMPTS attempts at a round got nothing, the last contribution of
  every training device was refused, and every enrolled device has been seen: one that has not may
  be a training device whose contributions are accepted.
- A vote is a round to which all training devices are invited, and that is never attempted again:
  without a quorum it closes at its deadline, and the run's default model wins. A device that is
  away may come back until then.
- The operator may close a round with the contributions that are kept, with or without a quorum; the
  devices that had no time to contribute miss nothing.
"""

from __future__ import annotations

from dataclasses import replace

from fedclip_edge.coordinator import attendance
from fedclip_edge.coordinator.phase_gathering import gathering, open_if_enough
from fedclip_edge.coordinator.reminders import WAITING_S, remind, tell_waiting
from fedclip_edge.coordinator.round_events import (
    Abandon,
    Acknowledge,
    Action,
    Announce,
    Arrived,
    CloseEarly,
    CloseRound,
    Drop,
    Forget,
    Heard,
    Keep,
    Offered,
    Rejected,
    Reported,
    Restored,
    Step,
    Tick,
    Upload,
)
from fedclip_edge.coordinator.round_state import RoundState

# Training is deterministic: a contribution that was refused this often will always be refused.
ATTEMPTS = 5


def offer(state: RoundState, event: Offered, now: float) -> Step:
    """Ask for a contribution that is offered, or answer that it is kept or refused."""
    verdict = _judge(state, event)
    if verdict is not None:
        return state, (verdict,)
    state = replace(state, offered=state.offered | {event.device})
    return state, (Upload(event.device),)


def judge_early(state: RoundState, event: Offered | Arrived, now: float) -> Step:
    """Answer a contribution between two attempts only if it is kept or refused already."""
    verdict = _judge(state, event)
    return state, () if verdict is None else (verdict,)


def arrive(state: RoundState, event: Arrived, now: float) -> Step:
    """Keep a contribution that has arrived, and close the round if it was the last one."""
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
    state, actions = close_if_complete(state, now)
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


def close_if_complete(state: RoundState, now: float) -> Step:
    """End the attempt if no device is waited for any more, or at its deadline."""
    waiting = attendance.waiting(state, now)
    is_late = now >= state.deadline
    awaited = waiting - attendance.unsteady(state, now)
    if len(state.kept) >= state.quorum:
        awaited -= state.left_out
    elif state.is_vote:
        # There is no second attempt, so devices that are away may come back until the deadline.
        awaited = attendance.unanswered(state) - state.rejected - state.left_out
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
    state = replace(gathering(state, now), attempt=state.attempt + 1)
    is_hopeless = attendance.all_refused(state) and not attendance.unseen(state)
    if state.attempt >= ATTEMPTS and is_hopeless:
        return state, (*before, Abandon())
    state, actions = open_if_enough(state, now)
    return state, (*before, *(actions or (Announce(),)))


def _reason(state: RoundState, device: str, silent: frozenset[str]) -> str:
    """The reason why an attempt ended without the device's contribution."""
    if device in state.rejected:
        return "refused"
    if device in state.away_since:
        return "offline"
    return "silent" if device in silent else "late"


def hear(state: RoundState, event: Heard | Reported, now: float) -> Step:
    """Note that a device is there."""
    return replace(state, heard=state.heard | {event.device}), ()


def close_early(state: RoundState, event: CloseEarly, now: float) -> Step:
    """Close the round; one without a contribution stays, but a vote then takes the default."""
    if not state.kept and not state.is_vote:
        return state, ()
    return state, (CloseRound(has_quorum=bool(state.kept)),)


def reject(state: RoundState, event: Rejected, now: float) -> Step:
    """Note that the contribution of a device did not fit; it is not waited for any more."""
    if event.round != state.round or event.device in state.kept:
        return state, ()
    state = replace(
        state,
        rejected=state.rejected | {event.device},
        refused=state.refused | {event.device},
    )
    return close_if_complete(state, now)


def tick_open(state: RoundState, event: Tick, now: float) -> Step:
    """End the attempt if that is due; remind silent devices otherwise."""
    state, actions = close_if_complete(state, now)
    if actions:
        return state, actions
    awaited = state.cohort - state.kept.keys() - state.rejected
    state, reminders = remind(state, awaited - state.offered, now)
    waiting = attendance.waiting(state, now)
    opened_at = state.deadline - state.rules.deadline_s
    if state.told_at is None:
        is_due = now - opened_at >= WAITING_S or bool(waiting & state.away_since.keys())
    else:
        is_due = now - state.told_at >= WAITING_S
    if not is_due:
        return state, reminders
    return replace(state, told_at=now), (*reminders, *tell_waiting(state, now))
