"""The queue of one client's events."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from fedclip_edge import log
from fedclip_edge.errors import RefusedError
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport import inbox
from fedclip_edge.transport.base import Connected, Disconnected, Flooding, Received
from fedclip_edge.transport.inbox import Inbox
from fedclip_edge.transport.outbox import Limits

LAB = Topics("lab")


@pytest.fixture(autouse=True)
def _json_lines() -> Iterator[None]:
    log.use_json(True)
    yield
    log.use_json(False)


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def up(device: str, text: str) -> Received:
    return Received(LAB.up(device), text.encode())


def texts(box: Inbox) -> list[str]:
    found = []
    while (event := box.next_event(0)) is not None:
        assert isinstance(event, Received)
        found.append(event.payload.decode())
    return found


def dropped(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("time", "event")}
        for line in lines
        if line["event"] == "messages_dropped"
    ]


def test_devices_take_turns_and_the_flood_is_bounded() -> None:
    box = Inbox(Limits(), LAB.owner)
    for number in range(1_200):
        box.put(up("mallory", f"flood {number}"))
    box.put(up("cam-01", "hello"))
    box.put(up("cam-01", "offer"))
    heard = texts(box)
    assert heard[1] == "hello"
    assert heard[3] == "offer"
    flood = [text for text in heard if text.startswith("flood")]
    assert flood == [f"flood {n}" for n in range(1_200 - inbox.SHARE.items, 1_200)]


def test_a_share_is_bounded_in_bytes() -> None:
    box = Inbox(Limits(), LAB.owner)
    for _ in range(300):
        box.put(Received(LAB.up("mallory"), bytes(100_000)))
    held = 0
    while isinstance(event := box.next_event(0), Received):
        held += len(event.payload)
    assert inbox.SHARE.size_bytes // 2 < held <= inbox.SHARE.size_bytes


def test_dropped_messages_are_reported_by_name_at_once_and_then_each_minute(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    box = Inbox(Limits(), LAB.owner, clock)
    over = inbox.SHARE.items + 7
    for _ in range(over):
        box.put(up("mallory", "x"))
    box.put(up("cam-01", "x"))
    box.next_event(0)
    assert dropped(capsys) == [{"device": "mallory", "count": 7}]
    for _ in range(over):
        box.put(up("mallory", "x"))
    for clock.now in (1.0, inbox.REPORT_S - 0.1):
        box.next_event(0)
        assert dropped(capsys) == []
    clock.now = inbox.REPORT_S
    box.next_event(0)
    assert dropped(capsys) == [{"device": "mallory", "count": over - 1}]
    clock.now = 10 * inbox.REPORT_S
    box.next_event(0)
    assert dropped(capsys) == []


def test_a_flood_is_told_once_for_each_so_many_dropped_messages() -> None:
    box = Inbox(Limits(), LAB.owner)
    for _ in range(inbox.SHARE.items + inbox.FLOOD - 1):
        box.put(up("mallory", "x"))
    assert isinstance(box.next_event(0), Received)
    for _ in range(2):
        box.put(up("mallory", "x"))
    assert isinstance(box.next_event(0), Received)
    for _ in range(inbox.FLOOD):
        box.put(up("mallory", "x"))
    box.put(up("cam-01", "x"))
    assert box.next_event(0) == Flooding("mallory")
    assert len(texts(box)) == inbox.SHARE.items + 1


def test_the_names_that_are_counted_are_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    box = Inbox(Limits(), LAB.owner)
    for number in range(2_000):
        box.put(Received(LAB.up(f"made-up-{number}"), bytes(inbox.SHARE.size_bytes)))
    box.next_event(0)
    said = dropped(capsys)
    assert len(said) == 1_001
    assert said[-1] == {"count": 1_000}


def test_without_names_all_messages_are_one_senders_and_bounded() -> None:
    box = Inbox(Limits())
    count = 2 * inbox.ALONE.items
    for number in range(count):
        box.put(up(f"cam-{number % 3}", str(number)))
    assert texts(box) == [str(n) for n in range(count - inbox.ALONE.items, count)]


def test_events_of_the_link_come_first_and_a_broken_link_drops_what_waits() -> None:
    box = Inbox(Limits(), LAB.owner)
    box.put(up("cam-01", "retained"))
    box.link_up(Limits(1000))
    assert box.next_event(0) == Connected()
    assert box.limits == Limits(1000)
    assert texts(box) == ["retained"]
    box.put(up("cam-01", "of the old link"))
    box.link_down(Disconnected("cut"))
    box.put(up("cam-01", "of the new link"))
    assert box.next_event(0) == Disconnected("cut")
    assert texts(box) == ["of the new link"]


def test_a_refusal_is_told_even_in_a_flood() -> None:
    box = Inbox(Limits(), LAB.owner)
    for _ in range(1000):
        box.put(up("mallory", "x"))
    box.refuse("for good")
    with pytest.raises(RefusedError, match="for good"):
        box.next_event(0)
