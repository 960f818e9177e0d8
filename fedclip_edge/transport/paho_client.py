"""paho's client with less work for each message.

paho waits with select() before each packet that it reads, and again before each one that it writes;
an acknowledgement that it queues itself wakes it a third time. For each message that arrives, it
makes an object for the properties of MQTT 5, and five copies of the payload. With a thousand
devices, this took a fifth of the coordinator's CPU time (docs/explanation/scale.md).

Laws:
- What is queued for the broker is written before the next select() that could wait for long.
- A message is handed over before it is acknowledged, as in paho.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MessageType, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fedclip_edge.transport.mqtt_version import Version
from fedclip_edge.transport.read_ahead import ReadAhead

# Largest packet that this client accepts: every message of the protocol is smaller. A broker with
# MQTT 5 delivers nothing larger.
_TAKES_BYTES = 200_000
_PACKETS_AT_ONCE = 32  # read before what is queued is written


@dataclass(frozen=True)
class Message:
    """A message that arrived. Without its properties: this program does not use them."""

    topic: str
    payload: bytes


class PahoClient(mqtt.Client):
    """A client whose protocol version can change between connections."""

    _waker: Any = None
    _acknowledgements = b""  # of the messages of one loop_read

    def speak(self, version: Version) -> None:
        """Use this version for the next connection."""
        self._protocol = MQTTProtocolVersion(version)
        self._clean_start = True  # like a clean session of 3.1.1: the session ends with the link
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = _TAKES_BYTES
        self._connect_properties = properties

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """Read a packet and those that arrived with it, then write the acknowledgements."""
        self._acknowledgements = b""
        for _ in range(_PACKETS_AT_ONCE):
            result = super().loop_read(max_packets)
            connection: Any = self.socket()
            if result != MQTTErrorCode.MQTT_ERR_SUCCESS or connection is None:
                return result
            if not connection.pending():
                break
        if self._acknowledgements:
            self._packet_queue(MessageType.PUBACK, self._acknowledgements, 0, 0)
        return self.loop_write() if self.want_write() else result

    def _create_socket(self) -> Any:
        return ReadAhead(super()._create_socket())

    def _handle_publish(self) -> MQTTErrorCode:
        """Take one message; raises MalformedPacket, which ends the connection."""
        qos = self._in_packet["command"] >> 1 & 3
        if qos > 1:
            return super()._handle_publish()
        packet = memoryview(self._in_packet["packet"])
        topic_end = 2 + int.from_bytes(packet[:2], "big")
        begin = topic_end + 2 * qos
        if self._protocol == MQTTProtocolVersion.MQTTv5:
            begin = _after_properties(packet, begin)
        if begin > len(packet):
            raise MalformedPacket(f"a message of {len(packet)} bytes whose content is at {begin}")
        topic = bytes(packet[2:topic_end]).decode(errors="replace")
        self._handle_on_message(Message(topic, bytes(packet[begin:])))  # type: ignore[arg-type]
        if qos:
            identifier = bytes(packet[topic_end : topic_end + 2])
            self._acknowledgements += bytes([MessageType.PUBACK, len(identifier)]) + identifier
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    # paho writes a byte to this socket to end a select() of its thread. That thread itself does not
    # need it: it looks for packets to write before each select().
    @property
    def _sockpairW(self) -> Any:  # noqa: N802 - paho's name
        return None if threading.current_thread() is self._thread else self._waker

    @_sockpairW.setter
    def _sockpairW(self, waker: Any) -> None:  # noqa: N802
        self._waker = waker


def _after_properties(packet: memoryview, begin: int) -> int:
    """The index after the properties at `begin`: their length, in 7 bits a byte, then the rest."""
    length, shift = 0, 0
    for at in range(begin, min(begin + 4, len(packet))):
        length |= (packet[at] & 127) << shift
        shift += 7
        if packet[at] < 128:
            return at + 1 + length
    raise MalformedPacket("the length of the properties has no end")
