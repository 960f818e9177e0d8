"""The phase `final` of a run: the devices evaluate the last model."""

from __future__ import annotations

from dataclasses import replace

from fedclip_edge.coordinator import attendance
from fedclip_edge.coordinator.reminders import remind
from fedclip_edge.coordinator.round_events import Announce, EndEarly, Finish, Reported, Step, Tick
from fedclip_edge.coordinator.round_state import RoundState


def evaluate_last(state: RoundState, now: float) -> Step:
    """Enter the phase."""
    deadline = now + state.rules.deadline_s
    state = replace(state, phase="final", deadline=deadline, reminded=0)
    state, actions = _finish_if_evaluated(state, now)
    return state, (Announce(), *actions)


def report_final(state: RoundState, event: Reported, now: float) -> Step:
    """Note that a device has evaluated the last model."""
    if event.round != state.round:
        return state, ()
    return _finish_if_evaluated(replace(state, reported=state.reported | {event.device}), now)


def tick_final(state: RoundState, event: Tick, now: float) -> Step:
    """End the run if that is due; remind silent devices otherwise."""
    state, actions = _finish_if_evaluated(state, now)
    return (state, actions) if actions else remind(state, state.evaluators - state.reported, now)


def finish_now(state: RoundState, event: EndEarly, now: float) -> Step:
    """End the run without the reports that are missing."""
    return replace(state, phase="done"), (Announce(), Finish())


def _finish_if_evaluated(state: RoundState, now: float) -> Step:
    if attendance.evaluating(state, now) <= state.reported or now >= state.deadline:
        return replace(state, phase="done"), (Announce(), Finish())
    return state, ()
