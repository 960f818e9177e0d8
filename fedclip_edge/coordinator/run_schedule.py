"""The times at which runs start by themselves, from `[schedule]`.

All functions are pure. Times are Unix times, in seconds.

Laws:
- A run that was due while another one was under way, or while no coordinator served, starts once:
  as soon as it can.
- A clock that is set back by more than `every` starts a run, instead of none for that long.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, time, timedelta

from fedclip_edge.config.fleet import RunSchedule


def due_at(schedule: RunSchedule, started_at: float) -> float | None:
    """The time at which the run after the one that started at `started_at` is due.

    None if none is due by time.
    """
    if schedule.every_s is not None:
        return started_at + schedule.every_s
    return None if schedule.at_time is None else _next(schedule.at_time, started_at)


def cause_to_start(
    schedule: RunSchedule, started_at: float, new_pictures: int, now: float
) -> str | None:
    """The reason, in words, to start a run now; None if none is due.

    `started_at` is when the last run started, and `new_pictures` the number of labelled pictures
    that are new since.
    """
    due = due_at(schedule, started_at)
    back_s = schedule.every_s or 86400.0
    if due is not None and (now >= due or now < started_at - back_s):
        return f"schedule: every {schedule.every}" if schedule.every else f"schedule: {schedule.at}"
    if schedule.new_pictures is not None and new_pictures >= schedule.new_pictures:
        return f"schedule: {new_pictures} new pictures"
    return None


def count_new(before: Mapping[str, int], now: Mapping[str, int]) -> int:
    """The number of new pictures of all devices.

    `before` has each device's count when it joined the last run, `now` the newest one. A device
    that deletes pictures does not hide another one's new pictures.
    """
    return sum(max(0, count - before.get(device, 0)) for device, count in now.items())


def _next(at: time, after: float) -> float:
    """The first moment after `after` at which it is `at` on the local clock."""
    day = datetime.fromtimestamp(after).date()  # noqa: DTZ006 - the local clock is meant
    while (moment := datetime.combine(day, at).timestamp()) <= after:
        day += timedelta(days=1)
    return moment
