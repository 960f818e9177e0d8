"""paho's client with its own reading: the same messages, and each one acknowledged.

The broker is a socket of the test, so that packets arrive together, cut anywhere, or damaged.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from mqtt_client import DEADLINE_S, next_of

from fedclip_edge.config import BrokerAddress
from fedclip_edge.transport.base import Connected, Disconnected, Received
from fedclip_edge.transport.mqtt import PahoTransport

_CONNACK = b"\x20\x03\x00\x00\x00"
_USER_PROPERTY = b"\x26\x00\x01k\x00\x01v"


def publish(payload: bytes, number: int, *, qos: int = 1, properties: bytes = b"") -> bytes:
    """A PUBLISH packet of MQTT 5 on topic "a/b"."""
    body = b"\x00\x03a/b" + (number.to_bytes(2, "big") if qos else b"")
    body += bytes([len(properties)]) + properties + payload
    length = bytes([len(body) % 128 | 128, len(body) // 128])
    return bytes([0x30 | qos << 1]) + length + body


class Broker:
    """One accepted connection of a client that has subscribed."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(DEADLINE_S)
        address = BrokerAddress(port=self.listener.getsockname()[1])
        self.client = PahoTransport(address, "a", [], None)

    def accept(self) -> None:
        self.connection, _ = self.listener.accept()
        self.connection.settimeout(DEADLINE_S)
        self.connection.recv(4096)
        self.connection.sendall(_CONNACK)

    def read(self, count: int) -> bytes:
        read = b""
        while len(read) < count:
            part = self.connection.recv(4096)
            assert part
            read += part
        return read


@pytest.fixture
def broker() -> Iterator[Broker]:
    made = Broker()
    accepting = threading.Thread(target=made.accept)
    accepting.start()
    made.client.connect(DEADLINE_S)
    accepting.join()
    next_of(made.client, Connected)
    yield made
    made.connection.close()
    made.listener.close()
    made.client.close()


def test_what_arrives_together_is_handed_over_in_order_and_acknowledged(broker: Broker) -> None:
    count = 100  # more than are read before the acknowledgements are written
    broker.connection.sendall(
        b"".join(
            publish(b"%d" % n, n, properties=_USER_PROPERTY * (n % 3)) for n in range(1, count)
        )
    )
    got = [next_of(broker.client, Received) for _ in range(1, count)]
    assert got == [Received("a/b", b"%d" % n) for n in range(1, count)]
    expected = b"".join(b"\x40\x02" + n.to_bytes(2, "big") for n in range(1, count))
    assert broker.read(len(expected)) == expected


def test_a_message_cut_anywhere_is_the_same(broker: Broker) -> None:
    packet = publish(bytes(range(200)), 7)
    for cut in range(1, 12):
        broker.connection.sendall(packet[:cut])
        time.sleep(0.01)
        broker.connection.sendall(packet[cut:])
        assert next_of(broker.client, Received) == Received("a/b", bytes(range(200)))
    assert broker.read(4 * 11) == b"\x40\x02\x00\x07" * 11


def test_a_message_without_acknowledgement_is_handed_over(broker: Broker) -> None:
    broker.connection.sendall(publish(b"zero", 0, qos=0) + publish(b"one", 1))
    assert next_of(broker.client, Received).payload == b"zero"
    assert next_of(broker.client, Received).payload == b"one"
    assert broker.read(4) == b"\x40\x02\x00\x01"


def test_a_topic_that_is_no_text_harms_nobody(broker: Broker) -> None:
    packet = publish(b"x", 1).replace(b"a/b", b"a/\xff")
    broker.connection.sendall(packet + publish(b"after", 2))
    assert next_of(broker.client, Received).topic == "a/\ufffd"
    assert next_of(broker.client, Received).payload == b"after"


@pytest.mark.parametrize(
    "packet",
    [
        b"\x32\x04\x00\x09ab",  # shorter than its topic
        b"\x32\x05\x00\x03a/b",  # no identifier
        b"\x32\x08\x00\x03a/b\x00\x01\xff",  # the length of the properties does not end
        b"\x32\x08\x00\x03a/b\x00\x01\x09",  # shorter than its properties
    ],
)
def test_a_damaged_message_ends_the_connection(broker: Broker, packet: bytes) -> None:
    broker.connection.sendall(packet)
    next_of(broker.client, Disconnected)
