"""The link of the answers, over a real mosquitto."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from brokers import Mosquitto, StartMosquitto, free_port
from mqtt_client import Proxy, connected, next_of
from system import DEADLINE_S, wait_until

from fedclip_edge.agent.answer_link import AnswerLink, AnswerQueue
from fedclip_edge.agent.home_assistant import access_list, announcement, discovery_topic
from fedclip_edge.config.answers import AnswersBroker
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import ConfigError
from fedclip_edge.transport.base import Received

ANSWER, AVAILABILITY = "fedclip-edge/cam-07/answer", "fedclip-edge/cam-07/availability"


def settings(address: BrokerAddress, **more: Any) -> AnswersBroker:
    same = {field.name: getattr(address, field.name) for field in fields(BrokerAddress)}
    return AnswersBroker(**{**same, **more})


@contextmanager
def link(broker: AnswersBroker, device: str = "cam-07") -> Iterator[AnswerLink]:
    made = AnswerLink(broker, device)
    made.start()
    try:
        yield made
    finally:
        made.close()


class Listener:
    """A client of the broker that notes its messages, in order."""

    def __init__(self, address: BrokerAddress, *topics: str) -> None:
        self.client = connected(address, f"listener-{time.monotonic_ns()}", topics)
        self.heard: list[tuple[str, bytes]] = []

    def until(self, payload: bytes) -> None:
        while True:
            event = next_of(self.client, Received)
            self.heard.append((event.topic, event.payload))
            if event.payload == payload:
                return

    def on(self, topic: str) -> list[bytes]:
        return [payload for heard, payload in self.heard if heard == topic]


@contextmanager
def listening(address: BrokerAddress, *topics: str) -> Iterator[Listener]:
    made = Listener(address, *topics)
    try:
        yield made
    finally:
        made.client.close()


@pytest.fixture
def broker(start_mosquitto: StartMosquitto) -> Iterator[Mosquitto]:
    made = start_mosquitto()
    yield made
    made.stop()


def test_answers_arrive_within_a_second_in_order_and_the_last_one_stays(broker: Mosquitto) -> None:
    with (
        listening(broker.address, "fedclip-edge/#") as listener,
        link(settings(broker.address)) as made,
    ):
        listener.until(b"online")
        for number in range(100):
            made.put(ANSWER, b"%d" % number)
        listener.until(b"99")
        assert listener.on(ANSWER) == [b"%d" % number for number in range(100)]
    with listening(broker.address, "fedclip-edge/#") as late:
        late.until(b"offline")
        while ANSWER not in dict(late.heard):
            late.until(b"99")
    assert dict(late.heard) == {ANSWER: b"99", AVAILABILITY: b"offline"}


def test_a_device_that_is_killed_is_offline(broker: Mosquitto) -> None:
    proxy = Proxy(broker.address)
    with listening(broker.address, AVAILABILITY) as listener, link(settings(proxy.address)):
        listener.until(b"online")
        proxy.accepting = False
        proxy.cut()
        listener.until(b"offline")
        proxy.accepting = True
        listener.until(b"online")
    proxy.close()


def test_what_was_answered_while_the_broker_was_away_arrives_later(
    start_mosquitto: StartMosquitto,
) -> None:
    port = free_port()
    with link(settings(BrokerAddress(port=port))) as made:
        for number in range(50):
            made.put(ANSWER, b"%d" % number)
        broker = start_mosquitto(port)
        with listening(broker.address, ANSWER) as listener:
            listener.until(b"49")
        broker.stop()


@pytest.mark.parametrize("cuts", [1, 3])
def test_no_answer_is_lost_when_the_link_breaks_again_and_again(
    broker: Mosquitto, cuts: int
) -> None:
    proxy = Proxy(broker.address)
    with listening(broker.address, ANSWER) as listener, link(settings(proxy.address)) as made:
        for number in range(600):
            made.put(ANSWER, b"%d" % number)
            if number % 150 == 75 and number // 150 < cuts:
                listener.until(b"%d" % (number // 2))
                proxy.cut()
        listener.until(b"599")
    heard = listener.on(ANSWER)
    assert set(heard) == {b"%d" % number for number in range(600)}
    firsts = [heard.index(b"%d" % number) for number in range(600)]
    assert firsts == sorted(firsts), "an answer came before an older one"
    proxy.close()


def test_the_oldest_answers_are_dropped_and_counted(
    start_mosquitto: StartMosquitto, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    with link(settings(BrokerAddress(port=port), keep=10)) as made:
        for number in range(25):
            made.put(ANSWER, b"%d" % number)
        broker = start_mosquitto(port)
        with listening(broker.address, ANSWER) as listener:
            listener.until(b"24")
        made.put(ANSWER, b"last")
        with listening(broker.address, ANSWER) as listener:
            listener.until(b"last")
        broker.stop()
    assert "answers_dropped" in (said := capsys.readouterr().out)
    assert "count=15" in said


def test_a_broker_that_is_away_or_refuses_is_reported_once_and_stops_nothing(
    start_mosquitto: StartMosquitto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passwords = tmp_path / "passwords"
    passwords.touch()
    passwords.chmod(0o600)
    broker = start_mosquitto(settings=f"allow_anonymous false\npassword_file {passwords}")
    said = ""

    def is_reported() -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return "answers_broker_not_reached" in said

    with link(settings(broker.address, username="cam-07")) as made:
        made.put(ANSWER, b"1")
        wait_until(is_reported, "the report of the refusal")
    assert said.count("answers_broker_not_reached") == 1
    broker.stop()
    began = time.monotonic()
    with link(settings(BrokerAddress(port=free_port()), keep=2)) as made:
        for _ in range(3):
            made.put(ANSWER, b"1")
    assert time.monotonic() - began < DEADLINE_S / 10, "the end waited for a broker that is away"
    said = capsys.readouterr().out
    assert "answers_dropped" in said
    assert "count=3" in said


def test_a_broker_with_the_printed_access_list_takes_everything_and_nothing_else(
    start_mosquitto: StartMosquitto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = AnswersBroker(username="box", home_assistant=True)
    reader = "\nuser reader\ntopic read #\n"
    acl = tmp_path / "acl"
    acl.write_text(access_list(mine, "cam-07") + reader)
    acl.chmod(0o600)
    broker = start_mosquitto(settings=f"allow_anonymous true\nacl_file {acl}")
    its = settings(broker.address, username="box", home_assistant=True)
    listens = settings(broker.address, username="reader")
    with listening(listens, "#") as listener, link(its) as made:
        made.put(ANSWER, b"1")
        listener.until(b"1")
        made.put("fedclip-edge/cam-08/answer", b"of another device")
        made.put(ANSWER, b"2")
        listener.until(b"2")
        (announced,) = listener.on(discovery_topic(its, "cam-07"))
        assert json.loads(announced) == announcement(its, "cam-07")
    assert not listener.on("fedclip-edge/cam-08/answer")
    broker.stop()


def test_wrong_certificates_are_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.crt under \[answers\.broker\]"):
        AnswerLink(AnswersBroker(ca=tmp_path / "ca.crt"), "cam-07")


def test_a_queue_that_is_put_to_and_taken_from_at_once_keeps_the_order() -> None:
    queue, taken = AnswerQueue(100_000), list[bytes]()

    def put() -> None:
        for number in range(2_000):
            queue.put("x", b"%d" % number)

    putting = threading.Thread(target=put)
    putting.start()
    while putting.is_alive() or len(queue):
        taken += [message.payload for message in queue.take()]
        queue.acknowledge()
    putting.join()
    assert taken == [b"%d" % number for number in range(2_000)]


def test_messages_that_are_on_their_way_are_published_again_after_a_break() -> None:
    queue = AnswerQueue(3)
    for payload in (b"1", b"2"):
        queue.put("x", payload)
    assert [one.payload for one in queue.take()] == [b"1", b"2"]
    assert queue.take() == []
    for payload in (b"3", b"4"):
        queue.put("x", payload)  # drops the 1, which is on its way
    queue.take_back()
    assert [one.payload for one in queue.take()] == [b"2", b"3", b"4"]
    assert queue.take_dropped() == 1
