"""Threads and batches: chosen from the cores, in order, and never more than the limit."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from system import DEADLINE_S

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.vision import pace
from fedclip_edge.vision.pace import BATCHES_AHEAD, Pace, pace_of, threads_of


@pytest.mark.parametrize(("cores", "batch_size"), [(1, 8), (2, 8), (4, 16), (6, 24), (64, 32)])
def test_chosen_from_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, batch_size: int
) -> None:
    monkeypatch.setattr(pace, "usable_cores", lambda: cores)
    assert pace_of(EncoderConfig()) == Pace(cores, batch_size)
    assert threads_of(EncoderConfig()) == cores


def test_what_is_set_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "usable_cores", lambda: 6)
    assert pace_of(EncoderConfig(threads=3, batch_size=5)) == Pace(3, 5)
    assert pace_of(EncoderConfig(threads=1)) == Pace(1, 8)
    assert pace_of(EncoderConfig(batch_size=1)) == Pace(6, 1)


@given(st.lists(st.integers(), max_size=30), st.integers(1, 4), st.integers(1, 5))
def test_batches_are_all_results_in_order(items: list[int], threads: int, size: int) -> None:
    batches = list(Pace(threads, size).batches(lambda item: item * 2, items))
    assert [result for batch in batches for result in batch] == [item * 2 for item in items]
    assert all(len(batch) == size for batch in batches[:-1])


def test_at_most_so_many_are_ready_while_the_caller_works() -> None:
    begun = threading.Semaphore(0)
    count = 0

    def work(item: int) -> int:
        nonlocal count
        count += 1
        begun.release()
        return item

    with closing(Pace(threads=1, batch_size=3).batches(work, range(100))) as batches:
        assert next(batches) == [0, 1, 2]
        for _ in range(3 + 3 * BATCHES_AHEAD):  # this batch, and those that are ready for later
            assert begun.acquire(timeout=DEADLINE_S)
        assert not begun.acquire(timeout=0.05)
    assert count == 3 + 3 * BATCHES_AHEAD
