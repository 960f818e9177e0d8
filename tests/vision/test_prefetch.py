"""Prefetch: the order of map, and at most one item ahead."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from system import DEADLINE_S

from fedclip_edge.vision.prefetch import prefetch


@given(st.lists(st.integers()))
def test_it_is_map(items: list[int]) -> None:
    assert list(prefetch(lambda item: item * 2, items)) == [item * 2 for item in items]


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
