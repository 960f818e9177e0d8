"""Counts of refused messages by sender and kind."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.protocol import refusals
from fedclip_edge.protocol.refusals import REPORT_S, Line, Refusals

REFUSED = st.tuples(
    st.sampled_from(["cam-01", "cam-02", ""]),
    st.sampled_from(["chunk 3 of 9", "chunk 4 of 9", "kind 'x'", "kind 'y'", "late"]),
    st.integers(0, 40),
)


def kind_of(reason: str) -> str:
    return reason.split(maxsplit=1)[0]


@given(st.lists(REFUSED, max_size=60))
def test_nothing_is_lost_the_first_is_told_in_full_and_counts_come_each_minute(
    refused: list[tuple[str, str, int]],
) -> None:
    book, now = Refusals(), 0.0
    told, given_ = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    told_at: dict[tuple[str, str], float] = {}

    def write(line: Line) -> None:
        which = (line.sender, kind_of(line.reason))
        assert now - told_at.get(which, -REPORT_S) >= REPORT_S
        told_at[which] = now
        told[which] += line.count or 1

    for sender, reason, wait_s in refused:
        now += wait_s
        for line in book.poll(now):
            assert line.count
            write(line)
        which = (sender, kind_of(reason))
        first = book.add(sender, "topic", reason, now)
        given_[which] += 1
        if which not in told_at:
            assert first == Line(sender, "topic", reason)
        if first is not None:
            write(first)
    for _ in range(2):
        now += REPORT_S
        for line in book.poll(now):
            write(line)
    assert told == given_


def test_a_count_has_the_topic_and_the_reason_of_the_last() -> None:
    book = Refusals()
    assert book.add("cam-01", "up", "chunk 1 is late", 0.0) is not None
    for number in range(2, 5):
        assert book.add("cam-01", f"up/{number}", f"chunk {number} is late", 1.0) is None
    assert book.poll(REPORT_S - 0.1) == []
    assert book.poll(REPORT_S) == [Line("cam-01", "up/4", "chunk 4 is late", 3)]


def test_made_up_names_and_reasons_are_bounded() -> None:
    book, now = Refusals(), 0.0
    for _ in range(3):
        lines = 0
        for number in range(5_000):
            lines += book.add(f"made-up-{number}", "up", "late", now) is not None
            lines += book.add("cam-01", "up", "x" * (number % 200), now) is not None
        assert refusals._SENDERS < lines <= refusals._SENDERS + 2 * (refusals._KINDS + 1)
        counted = sum(line.count or 0 for line in book.poll(now + REPORT_S))
        assert counted + lines == 10_000
        now += 2 * REPORT_S
        assert book.poll(now) == []
        assert not book._seen
        assert not book._kinds
