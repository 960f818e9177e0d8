"""The in-memory broker: lost and restored links, and a broker that dies."""

from __future__ import annotations

from fedclip_edge.transport.base import Connected, Disconnected, Event, Received, Will
from fedclip_edge.transport.in_memory import InMemoryBroker, InMemoryTransport


def client(broker: InMemoryBroker, name: str) -> InMemoryTransport:
    return broker.client(name, ("news", "gone/+"), Will(f"gone/{name}", b"gone"))


def events(link: InMemoryTransport) -> list[Event]:
    found: list[Event] = []
    while (event := link.next_event(0)) is not None:
        found.append(event)
    return found


def test_a_link_that_comes_back_gets_what_is_retained_and_not_what_it_missed() -> None:
    broker = InMemoryBroker()
    a, b = client(broker, "a"), client(broker, "b")
    broker.cut("a")
    b.publish("news", b"missed")
    b.publish("news", b"kept", retain=True)
    a.publish("news", b"forgotten")
    broker.come_back(a)
    gone = Received("gone/a", b"gone")
    assert events(a) == [
        Connected(), Disconnected("cut"), Connected(), gone, Received("news", b"kept"),
    ]  # fmt: skip
    assert events(b) == [
        Connected(), gone, Received("news", b"missed"), Received("news", b"kept"),
    ]  # fmt: skip


def test_who_comes_back_throws_out_who_took_its_id() -> None:
    broker = InMemoryBroker()
    first = client(broker, "a")
    second = client(broker, "a")
    broker.come_back(first)
    assert broker.is_here(first)
    assert not broker.is_here(second)
    assert events(second)[-1] == Disconnected("cut")


def test_a_broker_that_dies_says_no_will_and_may_forget() -> None:
    for forgets in (False, True):
        broker = InMemoryBroker()
        a, b = client(broker, "a"), client(broker, "b")
        a.publish("news", b"old", retain=True)
        broker.die(forgets=forgets)
        assert not broker.is_here(a)
        events(b)
        broker.come_back(b)
        assert events(b) == [Connected(), *([] if forgets else [Received("news", b"old")])]
