"""The times at which runs start by themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.config.fleet import RunSchedule
from fedclip_edge.coordinator.run_schedule import cause_to_start, count_new, due_at

NOON = datetime(2026, 11, 29, 12, 0).timestamp()  # noqa: DTZ001 - the local clock is meant
HOUR, DAY = 3600.0, 86400.0


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def local(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_without_a_schedule_nothing_is_ever_due() -> None:
    assert cause_to_start(RunSchedule(), NOON, 10**9, NOON + 1000 * DAY) is None
    assert not RunSchedule().starts_runs


def test_every_counts_from_the_start_of_the_last_run() -> None:
    schedule = RunSchedule(every="24h")
    assert cause_to_start(schedule, NOON, 0, NOON + DAY - 1) is None
    assert cause_to_start(schedule, NOON, 0, NOON + DAY) == "schedule: every 24h"
    assert cause_to_start(schedule, NOON, 0, NOON + 9 * DAY) == "schedule: every 24h"


def test_a_clock_that_was_set_back_far_does_not_stop_the_runs() -> None:
    schedule = RunSchedule(every="1h")
    assert cause_to_start(schedule, NOON, 0, NOON - HOUR / 2) is None
    assert cause_to_start(schedule, NOON, 0, NOON - 365 * DAY) == "schedule: every 1h"


@pytest.mark.parametrize(
    ("started", "due"),
    [
        ("2026-11-29 01:00", "2026-11-29 02:30"),
        ("2026-11-29 02:30:00.200", "2026-11-30 02:30"),
        ("2026-11-29 23:59", "2026-11-30 02:30"),
        ("2026-10-24 02:31", "2026-10-25 02:30"),  # the night in which summer time ends
        ("2026-12-31 12:00", "2027-01-01 02:30"),
    ],
)
def test_at_is_the_next_such_time_on_the_local_clock(berlin: None, started: str, due: str) -> None:
    schedule = RunSchedule(at="02:30")
    assert due_at(schedule, local(started)) == local(due)
    assert cause_to_start(schedule, local(started), 0, local(due)) == "schedule: 02:30"


def test_a_repeated_hour_starts_one_run(berlin: None) -> None:
    started = local("2026-10-25 02:30")  # the first of two
    assert due_at(RunSchedule(at="02:30"), started + 1) == local("2026-10-26 02:30")


def test_new_pictures_start_a_run_whatever_the_time() -> None:
    schedule = RunSchedule(new_pictures=10, every="24h")
    assert cause_to_start(schedule, NOON, 9, NOON + 1) is None
    assert cause_to_start(schedule, NOON, 10, NOON + 1) == "schedule: 10 new pictures"


def test_deleted_pictures_hide_no_new_ones() -> None:
    assert count_new({"a": 100, "b": 5}, {"a": 40, "b": 9, "c": 3}) == 7


@given(st.floats(0, 4e9), st.integers(0, 23), st.integers(0, 59))
def test_at_is_due_within_a_day_and_an_hour(started: float, hour: int, minute: int) -> None:
    due = due_at(RunSchedule(at=f"{hour:02}:{minute:02}"), started)
    assert due is not None
    assert started < due <= started + 25 * HOUR
