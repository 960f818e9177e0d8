"""Chunks that several devices asked for."""

from __future__ import annotations

import threading
import time

from hypothesis import given, settings
from hypothesis import strategies as st
from system import DEADLINE_S

from fedclip_edge.coordinator.distribution import WantedChunks, parts_of
from fedclip_edge.protocol.chunks import blob_of, split

DATA = bytes(range(200))
BLOB = blob_of(DATA, "model", 10)
ALL = list(split(DATA, BLOB))
RANGES = st.lists(st.integers(0, 25), max_size=6).map(lambda firsts: tuple((n, n) for n in firsts))


def everything() -> WantedChunks:
    return WantedChunks(BLOB, parts_of(DATA, BLOB))


@settings(max_examples=200)
@given(st.lists(st.tuples(RANGES, st.integers(0, 8)), max_size=8))
def test_each_wanted_chunk_is_sent_once_for_all_that_asked_before(
    wants: list[tuple[tuple[tuple[int, int], ...], int]],
) -> None:
    wanted, pending, at = everything(), set[int](), 0
    for ranges, takes in wants:
        wanted.add(ranges)
        pending |= {first for first, _ in ranges if first < BLOB.chunks}
        for _ in range(takes):
            following = min((n for n in pending if n >= at), default=min(pending, default=None))
            assert next(wanted, None) == (None if following is None else ALL[following])
            if following is not None:
                pending.remove(following)
                at = following + 1
    rest = sorted(pending, key=lambda n: (n < at, n))
    assert len(wanted) == len(rest)
    assert list(wanted) == [ALL[index] for index in rest]


def test_a_range_ends_with_the_blob() -> None:
    wanted = everything()
    wanted.add(((18, 10**18),))
    assert list(wanted) == ALL[18:]


def test_a_want_that_comes_while_another_thread_sends_is_served() -> None:
    wanted, sent = everything(), list[bytes]()
    over = threading.Event()

    def send() -> None:
        while not over.is_set() or len(sent) < 100 * BLOB.chunks:
            sent.extend(wanted)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    deadline = time.monotonic() + DEADLINE_S
    for turn in range(100):
        while len(sent) < turn * BLOB.chunks:
            assert time.monotonic() < deadline
        wanted.add(((0, BLOB.chunks - 1),))
    over.set()
    sender.join(DEADLINE_S)
    assert sent == ALL * 100
