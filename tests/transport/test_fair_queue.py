"""The bounded queue with a fair share for each sender."""

from __future__ import annotations

from collections import defaultdict, deque

from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.transport.fair_queue import FairQueue, Room

SENDERS = st.sampled_from("abcdef")
STEPS = st.lists(st.tuples(SENDERS, st.integers(0, 60)) | st.none(), max_size=80)


@given(STEPS, st.integers(1, 12), st.integers(1, 8), st.integers(1, 120), st.integers(1, 60))
def test_the_queue_stays_within_its_limits_and_keeps_the_newest_in_order(
    steps: list[tuple[str, int] | None], items: int, share: int, total: int, part: int
) -> None:
    queue = FairQueue[int](Room(items, total), Room(share, part))
    waiting = defaultdict[str, deque[tuple[int, int]]](deque)
    for number, step in enumerate(steps):
        if step is None:
            taken = queue.take()
            if taken is None:
                assert not any(waiting.values())
            else:
                assert waiting[taken[0]].popleft()[0] == taken[1]
        else:
            sender, size = step
            dropped = queue.put(sender, number, size)
            mine = waiting[sender]
            mine.append((number, size))
            assert dropped == [mine.popleft()[0] for _ in dropped]
            assert len(mine) <= share
            assert sum(size for _, size in mine) <= part
        left = [entry for its in waiting.values() for entry in its]
        assert len(queue) == len(left) <= items
        assert queue.size_bytes == sum(size for _, size in left) <= total


@given(st.integers(1, 300))
def test_a_flood_neither_delays_nor_drops_what_others_send(flood: int) -> None:
    queue = FairQueue[str](Room(100, 10_000), Room(40, 4_000))
    for number in range(flood):
        queue.put("flooder", f"f{number}", 90)
    assert queue.put("one", "1", 90) == queue.put("two", "2", 90) == []
    first = [queue.take() for _ in range(3)]
    assert {("one", "1"), ("two", "2")} <= set(first)
    assert first[0] == ("flooder", f"f{max(0, flood - 40)}")


def test_many_flooders_leave_room_for_a_newcomer() -> None:
    queue = FairQueue[int](Room(1000, 10_000), Room(500, 5_000))
    for _ in range(2000):
        for name in range(9):
            queue.put(f"flooder-{name}", 0, 10)
    assert queue.put("newcomer", 1, 10) == []
    assert len(queue) <= 1000


def test_an_item_larger_than_a_share_is_dropped_and_counted() -> None:
    queue = FairQueue[int](Room(9, 100), Room(9, 50))
    assert queue.put("one", 1, 51) == [1]
    assert queue.take() is None
    assert queue.put("one", 2, 50) == []
    assert queue.put("one", 3, 51) == [2, 3]
    queue.clear()
    assert len(queue) == queue.size_bytes == 0
    assert queue.put("one", 4, 50) == []
    assert queue.take() == ("one", 4)
