"""Reminders while a run waits: the manifest again for devices, and the reason for the operator.

Laws:
- The run says for what it waits: at once and every WAITING_S in `gathering`, and every WAITING_S
  in an open round, or at once when a device that it waits for is away.
- A silent device gets the manifest again, at intervals that double. So a lost manifest at most
  doubles the time until the device reacts, and does not make it miss the whole attempt.
"""

from __future__ import annotations

from dataclasses import replace

from fedclip_edge.coordinator import attendance
from fedclip_edge.coordinator.round_events import Action, Remind, Step
from fedclip_edge.coordinator.round_state import RoundState

REMIND_S = 5.0  # a device without an offer for this long gets the manifest again
WAITING_S = 60.0  # what the run waits for is said again after this long


def remind(state: RoundState, awaited: frozenset[str], now: float) -> Step:
    """Send the manifest again to the silent ones of the `awaited` devices, if that is due."""
    waited_s = now - (state.deadline - state.rules.deadline_s)
    if waited_s < REMIND_S * 2**state.reminded:
        return state, ()
    silent = sorted(awaited - state.away_since.keys())
    return replace(state, reminded=state.reminded + 1), tuple(map(Remind, silent))


def tell_waiting(state: RoundState, now: float) -> tuple[Action, ...]:
    """The action that says for what the run waits; nothing if it does not wait."""
    waiting = attendance.reason_to_wait(state, now)
    return () if waiting is None else (waiting,)
