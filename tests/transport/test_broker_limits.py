"""Limits that a broker does not announce, with real brokers that have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
from brokers import StartMosquitto
from mqtt_client import Proxy, connected, fill, next_of
from system import wait_until

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.transport import mqtt_version
from fedclip_edge.transport.base import Connected, Disconnected, reconnect_wait_s
from fedclip_edge.transport.broker_limits import CLOSED, ENDS, SMALL_BYTES, LimitWatch
from fedclip_edge.transport.mqtt import PahoTransport
from fedclip_edge.transport.outbox import packet_size_bytes

pytestmark = pytest.mark.one_python
OPEN = "allow_anonymous true\n"
LARGE = bytes(60_000)
both_versions = pytest.mark.parametrize("version", [5, 4], ids=["5", "3.1.1"], indirect=True)


@pytest.fixture
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Literal[4, 5]:
    chosen: Literal[4, 5] = request.param
    monkeypatch.setattr(mqtt_version, "_answered", {})
    return chosen


def speak(address: BrokerAddress, version: Literal[4, 5]) -> None:
    mqtt_version._answered[address.host, address.port] = version


class Log:
    """The lines of one client's log, which are written when its events are taken."""

    def __init__(self, link: PahoTransport, capsys: pytest.CaptureFixture[str]) -> None:
        self._link, self._capsys = link, capsys
        self.text = ""
        self.lost: list[str] = []  # the reasons of `link_lost`, which the owner of a link writes

    def lines(self, event: str) -> list[str]:
        """Take all events, and return the lines of one event so far."""
        while (taken := self._link.next_event(0.01)) is not None:
            if isinstance(taken, Disconnected) and taken.reason:
                self.lost.append(taken.reason)
        self.text += self._capsys.readouterr().out
        return [line for line in self.text.splitlines() if line.split()[1] == event]

    def await_line(self, event: str, again: Callable[[], None] = lambda: None) -> str:
        """The first line of the event; calls `again` until it is there."""

        def came() -> bool:
            again()
            return bool(self.lines(event))

        wait_until(came, event)
        return self.lines(event)[0]


@pytest.mark.parametrize("version", [5], indirect=True)
def test_a_message_that_is_too_large_is_reported_once_and_the_link_stays(
    start_mosquitto: StartMosquitto, version: Literal[4, 5], capsys: pytest.CaptureFixture[str]
) -> None:
    """paho takes mosquitto's answer for a malformed packet, and would end the link."""
    broker = start_mosquitto(settings=OPEN + "message_size_limit 50000")
    speak(broker.address, version)
    link = connected(broker.address, "a", ["t"])
    log = Log(link, capsys)
    for _ in range(3):
        link.publish("t", LARGE)
        link.publish("t", b"small")
    wait_until(lambda: link.backlog() == 0, "the broker's answers")
    assert "message_size_limit" in log.await_line("broker_limit")
    assert f" {packet_size_bytes('t', len(LARGE))} bytes" in log.await_line("broker_limit")
    assert log.lost == []

    broker.stop()
    wait_until(lambda: link.packet_bytes() is None and not link._outbox.is_up, "the link to end")
    again = start_mosquitto(broker.address.port, OPEN)
    log.await_line("broker_limit_over", lambda: link.publish("t", LARGE))
    assert len(log.lines("broker_limit")) == 1
    link.close()
    again.stop()


LIMITS = {
    "5: memory_limit": (5, "memory_limit 400000"),
    "3.1.1: memory_limit": (4, "memory_limit 400000"),
    "3.1.1: max_packet_size": (4, "max_packet_size 50000"),
}


@pytest.mark.parametrize(("version", "limit"), LIMITS.values(), ids=LIMITS, indirect=["version"])
def test_a_broker_that_ends_the_link_at_each_large_message_is_reported_once(
    start_mosquitto: StartMosquitto,
    version: Literal[4, 5],
    limit: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broker = start_mosquitto(settings=OPEN + "max_queued_messages 0\n" + limit)
    speak(broker.address, version)
    link = connected(broker.address, "a", ["none"])
    log, number = Log(link, capsys), 0

    def send() -> None:
        """Send a small message, then large ones that the broker has to keep, as a fleet does."""
        nonlocal number
        if link.backlog():
            return
        link.publish("t/small", b"small")
        for _ in range(8):
            link.publish(f"t/{number}", LARGE, retain=True)
            number += 1

    reported = log.await_line("broker_limit", send)
    assert f"{ENDS} times in a row at a message of " in reported
    assert limit.split(maxsplit=1)[0] in reported
    lost = len(log.lost)
    assert lost >= ENDS - 1  # the last one is the report
    assert len(log.lines("link_restored")) == lost
    assert link._client._reconnect_min_delay >= reconnect_wait_s(0, 1, 0, ENDS)

    broker.stop()
    again = start_mosquitto(broker.address.port, OPEN)
    log.await_line("broker_limit_over", send)
    assert len(log.lines("broker_limit")) == 1
    assert len(log.lines("link_restored")) == len(log.lost) == lost
    link.close()
    again.stop()


@both_versions
def test_a_broker_without_room_for_another_connection_is_reported_once(
    start_mosquitto: StartMosquitto, version: Literal[4, 5], capsys: pytest.CaptureFixture[str]
) -> None:
    broker = start_mosquitto(settings=OPEN + "max_connections 2")
    way = Proxy(broker.address)
    for address in (broker.address, way.address):
        speak(address, version)
    link = connected(way.address, "a", ["t"])
    next_of(link, Connected)
    others = fill(broker.address)

    way.accepting = False
    way.cut()
    next_of(link, Disconnected)
    others += fill(broker.address)
    way.accepting = True
    log = Log(link, capsys)
    assert "max_connections" in log.await_line("broker_not_reached")
    for other in others:
        other.close()
    log.await_line("link_restored")
    assert len(log.lines("broker_not_reached")) == 1
    link.close()
    way.close()


def test_a_broken_network_is_not_taken_for_a_limit() -> None:
    watch = LimitWatch("here:1883")
    for _ in range(2 * ENDS):  # one of the large messages gets through on each link
        watch.taken(60_000)
        assert watch.link_ended("Unspecified error", [60_000] * 8) == ""
    for _ in range(2 * ENDS):  # nothing gets through, but no message is large
        assert watch.link_ended("Unspecified error", [100, SMALL_BYTES]) == ""
    for _ in range(2 * ENDS):  # nothing is on its way
        watch.taken(100)
        assert watch.link_ended("Unspecified error", []) == ""
    for _ in range(2 * ENDS):
        watch.taken(100)
        assert watch.link_ended("Session taken over", [60_000]) == ""
    assert not watch.is_reported


def test_the_smallest_message_that_was_not_taken_decides_when_a_limit_is_over() -> None:
    watch = LimitWatch("here:1883")
    for size in (90_000, 60_000, 80_000):
        watch.taken(100)
        told = watch.link_ended("Unspecified error", [size, 200])
    assert f"{ENDS} times in a row" in told
    assert watch.is_reported
    watch.taken(100)
    assert watch.link_ended("Unspecified error", [70_000]) == ""  # once is enough
    assert not watch.taken(59_999)
    assert watch.taken(60_000)
    assert (watch.is_reported, watch.ends) == (False, 0)


def test_one_connection_without_an_answer_is_not_enough() -> None:
    watch = LimitWatch("here:1883")
    for _ in range(CLOSED - 1):
        assert watch.closed_without_answer() == ""
    watch.answered()
    assert watch.closed_without_answer() == ""


def test_the_waits_for_a_broker_that_ends_every_link_grow_to_a_minute() -> None:
    waits = [reconnect_wait_s(0, 1, 0.5, limits) for limits in range(8)]
    assert waits == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 63.5, 63.5]
