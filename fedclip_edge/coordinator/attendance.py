"""The devices that count for a quorum, and those that a round waits for.

Laws:
- A device that misses LEFT_OUT_AFTER deadlines in a row is left out: it no longer counts. It stays
  invited, and counts again once a contribution of it is kept.
- A device misses a deadline when an attempt ends without its contribution, for whatever reason, and
  when it is offline at a deadline of `gathering` while another training device is online. A device
  that is offline at the second deadline of one `gathering` is left out at once.
- A device that goes away by itself for the second time within STEADY_DEADLINES deadlines is
  unsteady while it is away.
- Devices that are left out because their contributions are refused do not help to open a round,
  unless there is no other training device.
- If all devices that would train in the next attempt were refused last, it opens PAUSE_S after the
  last one opened, and this time doubles with each attempt, up to `deadline_s`.

All functions are pure; `now` is monotonic, in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from fedclip_edge.coordinator.round_events import Missed, Waiting
from fedclip_edge.coordinator.round_state import LEFT_OUT_AFTER, RoundState

# A device that goes away twice within this many `deadline_s` would hold up many rounds.
STEADY_DEADLINES = 10
PAUSE_S = 2.0


def needed(state: RoundState) -> int:
    """Number of training devices that have to be online before the round opens."""
    if is_first_opening(state):
        return state.rules.devices
    counting = _known(state) - state.left_out
    return max(1, math.ceil(state.rules.quorum * min(state.rules.devices, len(counting))))


def counted_in(state: RoundState) -> frozenset[str]:
    """The training devices that help to open the round: they are online or have contributed."""
    here = state.trainers | state.kept.keys()
    return here if all_refused(state) else here - _hopeless(state)


def is_enough(state: RoundState) -> bool:
    """True if enough training devices are online to open the round."""
    return len(counted_in(state)) >= needed(state)


def is_first_opening(state: RoundState) -> bool:
    """True before the first attempt at the first round."""
    return state.round == 1 and state.attempt == 0 and not state.kept


def all_refused(state: RoundState) -> bool:
    """True if every training device is left out because its contributions are refused."""
    known = _known(state)
    return bool(known) and known <= _hopeless(state)


def unseen(state: RoundState) -> frozenset[str]:
    """The enrolled devices that have not said hello in this run: each may be a training device."""
    return state.enrolled - state.online - state.absent - state.away_since.keys()


def is_pausing(state: RoundState, now: float) -> bool:
    """True if the next attempt has to wait, because it would be refused as the last one was."""
    retrying = counted_in(state) - state.kept.keys()
    return bool(state.attempt and retrying <= state.refused and retrying and now < state.again_at)


def pause_s(state: RoundState) -> float:
    """Seconds from one attempt to the next, if nobody trains in it whose last one was accepted."""
    return min(PAUSE_S * 2.0 ** min(state.attempt, 64), state.rules.deadline_s)


def waiting(state: RoundState, now: float) -> frozenset[str]:
    """The devices of the cohort that may still contribute in this attempt."""
    return unanswered(state) - state.rejected - given_up(state, now)


def unanswered(state: RoundState) -> frozenset[str]:
    """The devices of the cohort without a kept contribution, unless they cannot train any more."""
    idle = state.online - state.trainers - state.away_since.keys()
    return state.cohort - state.kept.keys() - idle


def reason_to_wait(state: RoundState, now: float) -> Waiting | None:
    """The devices that the run waits for in this phase, and how many it needs; None if it is over.

    In the phase `final` these are the devices that have not evaluated the last model yet.
    """
    if state.phase == "done":
        return None
    if state.phase == "gathering":
        absent = state.absent
        if is_first_opening(state):
            absent |= state.invited - state.online
        counted = counted_in(state)
        if is_pausing(state, now):
            counted -= state.refused
        missing = absent - state.left_out or absent
        return Waiting(needed(state), len(counted), tuple(sorted(missing)))
    if state.phase == "open":
        late = waiting(state, now)
        missing = late - state.left_out or late
        return Waiting(state.quorum, len(state.kept), tuple(sorted(missing)))
    every = evaluating(state, now)
    return Waiting(len(every), len(every & state.reported), tuple(sorted(every - state.reported)))


def evaluating(state: RoundState, now: float) -> frozenset[str]:
    """The devices whose reports on the last model the end of the run waits for."""
    return (state.evaluators | state.away_since.keys()) - given_up(state, now)


def given_up(state: RoundState, now: float) -> frozenset[str]:
    """The devices that have been offline for `grace_s`, or are not admitted any more."""
    return frozenset(
        device for device, since in state.away_since.items() if now - since >= state.rules.grace_s
    )


def unsteady(state: RoundState, now: float) -> frozenset[str]:
    """The devices that are away again, too soon after the last time."""
    departures = {device: state.departures.get(device, ()) for device in state.away_since}
    return frozenset(
        device
        for device, times in departures.items()
        if len(times) > 1 and now - times[0] < _memory_s(state)
    )


def departed(state: RoundState, device: str, now: float) -> Mapping[str, tuple[float, ...]]:
    """The departures, with one more of `device`; those too old to count are dropped."""
    recent = {
        d: times for d, times in state.departures.items() if now - times[-1] < _memory_s(state)
    }
    return {**recent, device: (*recent.get(device, ())[-1:], now)}


def absent(state: RoundState, devices: Collection[str]) -> frozenset[str]:
    """Those of `devices` that took no part in the open round, because they are away or were late.

    A device is not absent if its contribution was refused, or if it is online and does not train.
    """
    late = state.cohort & state.trainers
    here = state.online - late
    return frozenset(devices) - state.kept.keys() - state.rejected - here


def miss(
    state: RoundState, reasons: Mapping[str, str], times: int = 1
) -> tuple[RoundState, tuple[Missed, ...]]:
    """Count missed deadlines, for each device that is not left out yet."""
    news = sorted(reasons.keys() - state.left_out)
    counts = {device: min(state.missed.get(device, 0) + times, LEFT_OUT_AFTER) for device in news}
    missed = {**state.missed, **counts}
    state = replace(state, missed=missed)
    left_out = state.left_out
    return state, tuple(Missed(device, reasons[device], device in left_out) for device in news)


def _known(state: RoundState) -> frozenset[str]:
    """All training devices that are admitted, and those that have contributed to this round."""
    return state.trainers | state.kept.keys() | state.absent


def _hopeless(state: RoundState) -> frozenset[str]:
    return state.left_out & state.refused


def _memory_s(state: RoundState) -> float:
    return STEADY_DEADLINES * state.rules.deadline_s
