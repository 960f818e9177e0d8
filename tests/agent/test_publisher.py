"""The device's messages: signatures, topics and retained messages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from capable import CAPABLE

from fedclip_edge.agent.publisher import Publisher, will
from fedclip_edge.agent.state_db import RunPosition
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol import signing, wire
from fedclip_edge.protocol.messages import DeviceState, Hello, Want
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport.base import Received, Will
from fedclip_edge.transport.in_memory import InMemoryBroker, InMemoryTransport

TOPICS, ME = Topics("lab"), signing.create_identity()
STATE, UP = TOPICS.state("cam-0"), TOPICS.up("cam-0")
CONFIG = AgentConfig(
    "cam-0", "lab", DataConfig(Path()), Path(), domain="roof", roles=("evaluate",), bundle=Path()
)
OFFERS = replace(CAPABLE, roles=CONFIG.roles)
WANT = Want("a" * 64, ((0, 3),))


@pytest.fixture
def broker() -> InMemoryBroker:
    return InMemoryBroker()


def speak(broker: InMemoryBroker) -> Publisher:
    link = broker.client("cam-0", (), will(CONFIG, ME, "boot-1"))
    return Publisher(CONFIG, "boot-1", "e" * 64, "c" * 64, ME, link, OFFERS)


def listen(broker: InMemoryBroker) -> InMemoryTransport:
    return broker.client("listener", TOPICS.for_coordinator(), Will("gone", b""))


def heard(by: InMemoryTransport) -> list[Received]:
    events = []
    while (event := by.next_event(0)) is not None:
        events.append(event)
    return [event for event in events if isinstance(event, Received)]


def believed(event: Received) -> object:
    """The message in `event`; raises PeerError unless the device signed it for this topic."""
    signed = wire.unpack_control(event.topic, event.payload)
    signed.check(ME.key)
    assert signed.sender == "cam-0"
    return signed.message


def test_who_comes_later_hears_its_last_state(broker: InMemoryBroker) -> None:
    speaker = speak(broker)
    speaker.publish_state(online=False)
    speaker.publish_state(online=True)
    (last,) = heard(listen(broker))
    assert (last.topic, believed(last)) == (STATE, DeviceState("boot-1", online=True))


@pytest.mark.parametrize(
    ("reason", "said"),
    [("no\n mains", "no mains"), ("a\x1bb", "a?b"), ("x" * 200, "x" * 127 + "…")],
)
def test_the_reason_of_a_state_is_one_short_line(
    broker: InMemoryBroker, reason: str, said: str
) -> None:
    speak(broker).publish_state(online=False, reason=reason)
    (last,) = heard(listen(broker))
    assert believed(last) == DeviceState("boot-1", online=False, reason=said)


def test_of_a_device_that_vanished_the_broker_says_so_in_its_name(broker: InMemoryBroker) -> None:
    speak(broker).publish_state(online=True)
    broker.cut("cam-0")
    (last,) = heard(listen(broker))
    assert (last.topic, believed(last)) == (STATE, DeviceState("boot-1", online=False))


def test_a_hello_says_who_it_is_and_up_to_where_it_knows(broker: InMemoryBroker) -> None:
    listener = listen(broker)
    speak(broker).send_hello(RunPosition(epoch=4, run="run-1", closed=2))
    (said,) = heard(listener)
    assert said.topic == UP
    assert believed(said) == Hello(
        boot="boot-1",
        key=ME.key,
        domain="roof",
        encoder_id="e" * 64,
        classes_digest="c" * 64,
        capabilities=OFFERS,
        epoch=4,
        run="run-1",
        closed=2,
    )


def test_what_it_says_is_signed_for_its_own_topic_alone(broker: InMemoryBroker) -> None:
    listener = listen(broker)
    speak(broker).send(WANT)
    (said,) = heard(listener)
    assert believed(said) == WANT
    with pytest.raises(PeerError, match="wrong signature"):
        believed(Received(TOPICS.up("cam-1"), said.payload))


def test_what_it_says_upwards_is_over_once_it_is_said(broker: InMemoryBroker) -> None:
    speaker = speak(broker)
    speaker.send_hello(RunPosition())
    speaker.send(WANT)
    speaker.send_chunk(b"\xfc\x1e of a blob")
    assert heard(listen(broker)) == []


def test_a_chunk_goes_up_as_it_is(broker: InMemoryBroker) -> None:
    listener = listen(broker)
    speak(broker).send_chunk(b"\xfc\x1e of a blob")
    assert heard(listener) == [Received(UP, b"\xfc\x1e of a blob")]


def test_it_is_sending_until_the_broker_has_taken_it_in() -> None:
    class Slow(InMemoryBroker):
        def accept(
            self, client: InMemoryTransport, topic: str, payload: bytes, *, retain: bool
        ) -> None:
            client.on_its_way += 1

    speaker, at_once = speak(Slow()), speak(InMemoryBroker())
    assert not speaker.is_sending
    for one in (speaker, at_once):
        one.send(WANT)
    assert (speaker.is_sending, at_once.is_sending) == (True, False)
