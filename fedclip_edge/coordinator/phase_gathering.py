"""The phase `gathering` of a round: devices come until the round can open.

Laws:
- The first round opens once `devices` training devices are online. A later attempt or round needs
  the quorum of `devices`, or of the training devices that still count if they are fewer. With
  enough of them it waits for those that have just gone away, until `grace_s` after `gathering`
  began. It never waits for devices without the role "train".
- So if one training device stays online whose contributions are accepted, a later round opens
  after LEFT_OUT_AFTER deadlines of `gathering` at the latest, counted from its hello.
- While the run is paused, no round opens and nobody misses a deadline of `gathering`. An open round
  goes on to its end.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fedclip_edge.coordinator import attendance
from fedclip_edge.coordinator.reminders import WAITING_S, tell_waiting
from fedclip_edge.coordinator.round_events import Action, Announce, Pause, Step, Tick
from fedclip_edge.coordinator.round_state import RoundState
from fedclip_edge.protocol.cohort import EVERYBODY, NOBODY, cohort_hash


def gathering(state: RoundState, now: float, told_at: float | None = None) -> RoundState:
    """Enter the phase, with a new deadline."""
    return replace(
        state,
        phase="gathering",
        gathering_since=now,
        deadline=now + state.rules.deadline_s,
        told_at=told_at,
    )


def pause(state: RoundState, event: Pause, now: float) -> Step:
    """Pause the run, or let it go on."""
    if state.paused == event.paused:
        return state, ()
    state = replace(state, paused=event.paused)
    if state.paused or state.phase != "gathering":
        return state, ()
    return open_if_enough(gathering(state, now), now)


def tick_gathering(state: RoundState, event: Tick, now: float) -> Step:
    """Open the round if it can open; count missed deadlines otherwise."""
    if state.paused:
        return state, ()
    state, actions = open_if_enough(state, now)
    if actions:
        return state, actions
    missed: tuple[Action, ...] = ()
    if now >= state.deadline and not attendance.is_first_opening(state):
        state, missed = _miss_gathering(state, now)
        state, actions = open_if_enough(state, now)
        if actions:
            return state, (*missed, *actions)
    if state.told_at is not None and now - state.told_at < WAITING_S:
        return state, missed
    return replace(state, told_at=now), (*missed, *tell_waiting(state, now))


def _miss_gathering(state: RoundState, now: float) -> Step:
    """Count a missed deadline for each training device that is offline, and set the next one."""
    if not attendance.counted_in(state) & state.trainers:
        # All are offline, so none of them is to blame: the network or the power is gone.
        return gathering(state, now, told_at=state.told_at), ()
    rules = state.rules
    # Devices that take turns would each be online at one of the deadlines.
    times = max(1, math.floor((now - state.gathering_since) / rules.deadline_s))
    state = replace(state, deadline=now + rules.deadline_s)
    return attendance.miss(state, dict.fromkeys(state.absent, "offline"), times)


def open_if_enough(state: RoundState, now: float) -> Step:
    """Open the round, with an Announce, if enough devices are online."""
    if state.paused:
        return state, ()
    if attendance.is_first_opening(state) and not state.invited <= state.online:
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
