"""The round machine: the rounds of a run as a pure state table.

Laws:
- Every decision about a round is in this file, in its phases (phase_gathering.py, phase_open.py and
  phase_final.py) and in attendance.py, which do no I/O. `step` takes a state, an event and the time
  in seconds on any monotonic clock; it returns the next state and the actions.
- A pair of phase and event that is not in the table is an error.
- A closed round never reopens: the round number only grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from fedclip_edge.coordinator import attendance
from fedclip_edge.coordinator.phase_final import evaluate_last, finish_now, report_final, tick_final
from fedclip_edge.coordinator.phase_gathering import (
    gathering,
    open_if_enough,
    pause,
    tick_gathering,
)
from fedclip_edge.coordinator.phase_open import (
    arrive,
    close_early,
    close_if_complete,
    hear,
    judge_early,
    offer,
    reject,
    tick_open,
)
from fedclip_edge.coordinator.round_events import (
    Announce,
    Arrived,
    Closed,
    CloseEarly,
    EndEarly,
    Enrolled,
    Event,
    Extend,
    GiveUp,
    Heard,
    Joined,
    Left,
    Offered,
    Pause,
    Rejected,
    Reported,
    Step,
    Tick,
)
from fedclip_edge.coordinator.round_state import LEFT_OUT_AFTER, RoundState
from fedclip_edge.protocol.messages import Phase


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
    device = frozenset({event.device})
    state = replace(
        state,
        trainers=state.trainers | device if event.trains else state.trainers - device,
        evaluators=state.evaluators | device if event.evaluates else state.evaluators - device,
        receivers=state.receivers - device
        if event.trains or event.evaluates
        else state.receivers | device,
        absent=state.absent - {event.device},
        away_since={d: t for d, t in state.away_since.items() if d != event.device},
        heard=state.heard | {event.device},
    )
    return open_if_enough(state, now) if state.phase == "gathering" else (state, ())


def _leave(state: RoundState, event: Left, now: float) -> Step:
    device = event.device
    state = replace(state, receivers=state.receivers - {device})
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
        return close_if_complete(state, now) if state.phase == "open" else (state, ())
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


def _enrol(state: RoundState, event: Enrolled, now: float) -> Step:
    return replace(state, enrolled=event.devices), ()


def _extend(state: RoundState, event: Extend, now: float) -> Step:
    return replace(state, rounds=event.rounds, votes=event.votes), ()


def _closed(state: RoundState, event: Closed, now: float) -> Step:
    state = replace(state, kept={}, cohort=frozenset(), attempt=0)
    if state.round == state.rounds:
        return evaluate_last(state, now)
    state = replace(gathering(state, now), round=state.round + 1)
    state, actions = open_if_enough(state, now)
    return state, actions or (Announce(),)


def _end_early(state: RoundState, event: EndEarly, now: float) -> Step:
    closed = state.round - 1
    state = replace(state, round=closed, rounds=closed, kept={}, cohort=frozenset(), attempt=0)
    return evaluate_last(state, now)


def _give_up(state: RoundState, event: GiveUp, now: float) -> Step:
    return replace(state, phase="done", kept={}, cohort=frozenset()), (Announce(),)


def _nothing(state: RoundState, event: Event, now: float) -> Step:
    return state, ()


_TABLE: Mapping[tuple[Phase, type[Event]], Callable[..., Step]] = {
    ("gathering", Joined): _join,
    ("gathering", Left): _leave,
    ("gathering", Enrolled): _enrol,
    ("gathering", Heard): _nothing,
    ("gathering", Offered): judge_early,
    ("gathering", Arrived): judge_early,
    ("gathering", Rejected): _nothing,
    ("gathering", Closed): _closed,  # after CloseEarly
    ("gathering", Reported): _nothing,
    ("gathering", Tick): tick_gathering,
    ("gathering", Pause): pause,
    ("gathering", Extend): _extend,
    ("gathering", CloseEarly): close_early,
    ("gathering", EndEarly): _end_early,
    ("gathering", GiveUp): _give_up,
    ("open", Joined): _join,
    ("open", Left): _leave,
    ("open", Enrolled): _enrol,
    ("open", Heard): hear,
    ("open", Offered): offer,
    ("open", Arrived): arrive,
    ("open", Rejected): reject,
    ("open", Closed): _closed,
    ("open", Reported): hear,
    ("open", Tick): tick_open,
    ("open", Pause): pause,
    ("open", Extend): _extend,
    ("open", CloseEarly): close_early,
    ("open", EndEarly): _end_early,
    ("open", GiveUp): _give_up,
    ("final", Joined): _join,
    ("final", Left): _leave,
    ("final", Enrolled): _enrol,
    ("final", Heard): _nothing,
    ("final", Offered): offer,
    ("final", Arrived): arrive,
    ("final", Rejected): _nothing,
    ("final", Reported): report_final,
    ("final", Tick): tick_final,
    ("final", EndEarly): finish_now,
    ("final", GiveUp): _give_up,
    ("done", Joined): _nothing,
    ("done", Left): _nothing,
    ("done", Enrolled): _nothing,
    ("done", Heard): _nothing,
    ("done", Offered): offer,
    ("done", Arrived): arrive,
    ("done", Rejected): _nothing,
    ("done", Reported): _nothing,
    ("done", Tick): _nothing,
}
