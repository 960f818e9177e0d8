"""MQTT 3.1.1 and 5 packets, as far as needed to find and read a PUBLISH in a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

CONNECT, PUBLISH = 1, 3  # packet types
_DUP = 0x08
_V5 = 5


@dataclass(frozen=True)
class Publish:
    """A PUBLISH packet; the payload begins at the offset `payload_at`."""

    packet: bytes
    topic: str
    payload_at: int

    @property
    def payload(self) -> bytes:
        return self.packet[self.payload_at :]

    def again(self) -> bytes:
        """The packet as a sender repeats it, with the DUP flag (MQTT 3.1.1, section 3.3.1.1)."""
        return bytes([self.packet[0] | _DUP]) + self.packet[1:]

    def flipped(self, bit: int) -> bytes:
        """The packet with one bit of its payload flipped."""
        packet = bytearray(self.packet)
        packet[self.payload_at + bit // 8] ^= 1 << bit % 8
        return bytes(packet)


def packets(buffer: bytearray) -> Iterator[bytes]:
    """Take all complete packets from the front of `buffer`."""
    while True:
        length = _number(buffer, 1)
        if length is None or len(buffer) < length[1] + length[0]:
            return
        end = length[1] + length[0]
        packet = bytes(buffer[:end])
        del buffer[:end]
        yield packet


def version_of(connect: bytes) -> int:
    """The protocol level of a CONNECT: 4 for MQTT 3.1.1, 5 for MQTT 5."""
    at = _body(connect)
    return connect[at + 2 + int.from_bytes(connect[at : at + 2], "big")]


def type_of(packet: bytes) -> int:
    return packet[0] >> 4


def read_publish(packet: bytes, version: int) -> Publish:
    at = _body(packet)
    name_at, at = at + 2, at + 2 + int.from_bytes(packet[at : at + 2], "big")
    topic = packet[name_at:at].decode()
    if packet[0] & 0x06:  # with QoS 1 or 2 there is a packet identifier
        at += 2
    if version >= _V5:
        properties = _number(packet, at)
        assert properties is not None
        at = properties[1] + properties[0]
    return Publish(packet, topic, at)


def _body(packet: bytes) -> int:
    """The offset of the variable header."""
    length = _number(packet, 1)
    assert length is not None
    return length[1]


def _number(data: bytes | bytearray, at: int) -> tuple[int, int] | None:
    """The variable byte integer at `at` and the offset after it; None if it is incomplete."""
    value = 0
    for place in range(4):
        if at + place >= len(data):
            return None
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if not byte & 0x80:
            return value, at + place + 1
    raise ValueError("no MQTT packet: the length has more than four bytes")
