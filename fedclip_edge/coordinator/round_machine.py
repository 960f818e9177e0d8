"""The round machine: the rounds of a run as a pure state table.

Laws:
- Every decision about a round is in this file, and this file does no I/O. `step` takes a state, an
  event and the time in seconds on any monotonic clock; it returns the next state and the actions.
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
- A silent device gets the manifest again, at intervals that double. So a lost manifest at most
  doubles the time until the device reacts, and does not make it miss the whole attempt.
- A closed round never reopens: the round number only grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from fedclip_edge.coordinator.round_events import (
    Acknowledge,
    Action,
    Announce,
    Arrived,
    Closed,
    CloseRound,
    Drop,
    Event,
    Finish,
    Forget,
    Heard,
    Joined,
    Keep,
    Left,
    Offered,
    Rejected,
    Remind,
    Reported,
    Tick,
    Upload,
)
from fedclip_edge.coordinator.round_state import RoundState
from fedclip_edge.protocol.cohort import EVERYBODY, NOBODY, cohort_hash
from fedclip_edge.protocol.messages import Phase

REMIND_S = 5.0  # a device without an offer for this long gets the manifest again


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
        away_since={d: t for d, t in state.away_since.items() if d != event.device},
        heard=state.heard | {event.device},
    )
    return _open_if_enough(state, now) if state.phase == "gathering" else (state, ())


def _leave(state: RoundState, event: Left, now: float) -> Step:
    is_here = event.device in state.trainers | state.evaluators
    if not is_here and not (event.for_good and event.device in state.away_since):
        return state, ()
    state = replace(
        state,
        trainers=state.trainers - {event.device},
        evaluators=state.evaluators - {event.device},
        away_since={**state.away_since, event.device: -math.inf if event.for_good else now},
    )
    is_awaited = state.phase == "open" and event.for_good
    return _close_if_complete(state, now) if is_awaited else (state, ())


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
    state = replace(state, kept={**state.kept, event.device: event.sha256})
    state, actions = _close_if_complete(state, now)
    return state, (Keep(event.device), *actions)


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
    waiting = state.cohort - state.kept.keys() - state.rejected - _given_up(state, now)
    if waiting and now < state.deadline:
        return state, ()
    silent = waiting - state.offered - state.heard
    state = replace(state, trainers=state.trainers - silent, evaluators=state.evaluators - silent)
    forgotten = tuple(Forget(device) for device in sorted(silent))
    if len(state.kept) >= state.quorum:
        return state, (*forgotten, CloseRound())
    state = replace(state, phase="gathering", attempt=state.attempt + 1, deadline=math.inf)
    state, actions = _open_if_enough(state, now)
    return state, (*forgotten, *(actions or (Announce(),)))


def _remind(state: RoundState, awaited: frozenset[str], now: float) -> Step:
    waited_s = now - (state.deadline - state.rules.deadline_s)
    if waited_s < REMIND_S * 2**state.reminded:
        return state, ()
    silent = sorted(awaited - state.away_since.keys())
    return replace(state, reminded=state.reminded + 1), tuple(map(Remind, silent))


def _given_up(state: RoundState, now: float) -> frozenset[str]:
    return frozenset(
        device for device, since in state.away_since.items() if now - since >= state.rules.grace_s
    )


def _hear(state: RoundState, event: Heard | Reported, now: float) -> Step:
    return replace(state, heard=state.heard | {event.device}), ()


def _tick_gathering(state: RoundState, event: Tick, now: float) -> Step:
    return _open_if_enough(state, now)


def _reject(state: RoundState, event: Rejected, now: float) -> Step:
    if event.round != state.round or event.device in state.kept:
        return state, ()
    return _close_if_complete(replace(state, rejected=state.rejected | {event.device}), now)


def _tick_open(state: RoundState, event: Tick, now: float) -> Step:
    state, actions = _close_if_complete(state, now)
    if actions:
        return state, actions
    return _remind(state, state.cohort - state.kept.keys() - state.rejected - state.offered, now)


def _closed(state: RoundState, event: Closed, now: float) -> Step:
    state = replace(state, kept={}, cohort=frozenset(), attempt=0, deadline=math.inf)
    if state.round == state.rounds:
        state = replace(
            state,
            phase="final",
            deadline=now + state.rules.deadline_s,
            reminded=0,
        )
        state, actions = _finish_if_evaluated(state, now)
        return state, (Announce(), *actions)
    state = replace(state, phase="gathering", round=state.round + 1)
    state, actions = _open_if_enough(state, now)
    return state, actions or (Announce(),)


def _open_if_enough(state: RoundState, now: float) -> Step:
    # The first round waits for every expected device, later rounds for a quorum of them.
    needed = state.rules.devices
    if state.round > 1:
        needed = max(1, math.ceil(state.rules.quorum * needed))
    elif not state.invited <= state.trainers | state.evaluators:
        return state, ()
    if len(state.trainers | state.kept.keys()) < needed:
        return state, ()
    if state.away_since.keys() - _given_up(state, now):
        return state, ()  # a device has just gone offline: wait for it as in an open round
    return _open(state, now)


def _open(state: RoundState, now: float) -> Step:
    free = state.trainers - state.kept.keys()
    hashes = {d: cohort_hash(state.run, state.round, d) for d in free}
    chosen, threshold = sorted(hashes, key=hashes.__getitem__), EVERYBODY
    if state.rules.cohort:
        # Only the largest hash of the cohort is published, not a list of devices. The cohort has
        # exactly the configured size; devices kept from an earlier attempt count towards it.
        chosen = chosen[: max(0, state.rules.cohort - len(state.kept))]
        threshold = hashes[chosen[-1]] if chosen else NOBODY
    state = replace(
        state,
        phase="open",
        rejected=frozenset(),
        offered=frozenset(),
        heard=frozenset(),
        reminded=0,
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
    awaited = (state.evaluators | state.away_since.keys()) - _given_up(state, now)
    if awaited <= state.reported or now >= state.deadline:
        return replace(state, phase="done"), (Announce(), Finish())
    return state, ()


def _nothing(state: RoundState, event: Event, now: float) -> Step:
    return state, ()


_TABLE: Mapping[tuple[Phase, type[Event]], Callable[..., Step]] = {
    ("gathering", Joined): _join,
    ("gathering", Left): _leave,
    ("gathering", Heard): _nothing,
    ("gathering", Offered): _early,
    ("gathering", Arrived): _early,
    ("gathering", Rejected): _nothing,
    ("gathering", Reported): _nothing,
    ("gathering", Tick): _tick_gathering,
    ("open", Joined): _join,
    ("open", Left): _leave,
    ("open", Heard): _hear,
    ("open", Offered): _offer,
    ("open", Arrived): _arrive,
    ("open", Rejected): _reject,
    ("open", Closed): _closed,
    ("open", Reported): _hear,
    ("open", Tick): _tick_open,
    ("final", Joined): _join,
    ("final", Left): _leave,
    ("final", Heard): _nothing,
    ("final", Offered): _offer,
    ("final", Arrived): _arrive,
    ("final", Rejected): _nothing,
    ("final", Reported): _report_final,
    ("final", Tick): _tick_final,
    ("done", Joined): _nothing,
    ("done", Left): _nothing,
    ("done", Heard): _nothing,
    ("done", Offered): _offer,
    ("done", Arrived): _arrive,
    ("done", Rejected): _nothing,
    ("done", Reported): _nothing,
    ("done", Tick): _nothing,
}
