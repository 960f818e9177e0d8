"""Prefetch: the order of map, and at most one item ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from system import DEADLINE_S

from fedclip_edge.vision.prefetch import prefetch


@given(st.lists(st.integers()), st.integers(1, 4), st.integers(1, 5))
def test_it_is_map(items: list[int], threads: int, ahead: int) -> None:
    results = prefetch(lambda item: item * 2, items, threads=threads, ahead=ahead)
    assert list(results) == [item * 2 for item in items]


def test_threads_work_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=DEADLINE_S)  # breaks unless two threads are in it
    assert len(list(prefetch(lambda _: both.wait(), range(6), threads=2, ahead=2))) == 6


def test_items_are_taken_in_the_callers_thread() -> None:
    takers: set[str] = set()

    def items() -> Iterator[int]:
        for item in range(5):
            takers.add(threading.current_thread().name)
            yield item

    list(prefetch(lambda item: item, items(), threads=3, ahead=2))
    assert takers == {threading.current_thread().name}


def test_closed_early_it_leaves_no_thread() -> None:
    before = threading.active_count()
    results = prefetch(lambda item: item, range(100), threads=3, ahead=5)
    next(results)
    results.close()
    assert threading.active_count() == before


def test_it_is_one_item_ahead() -> None:
    begun = [threading.Event() for _ in range(4)]

    def work(item: int) -> int:
        begun[item].set()
        return item

    results = prefetch(work, range(4))
    assert next(results) == 0
    assert begun[1].wait(DEADLINE_S)  # while the caller still has the first item
    assert not begun[2].is_set()
    assert list(results) == [1, 2, 3]


def test_an_error_comes_in_its_turn() -> None:
    results = prefetch(lambda item: 1 // item, [1, 1, 0, 1])
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
