"""paho's client, with what this package changes in it."""

from __future__ import annotations

import contextlib
import socket

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from fedclip_edge.transport.broker_limits import TOO_LARGE
from fedclip_edge.transport.mqtt_version import Version


class Client(mqtt.Client):
    """paho's client, which can change its protocol version and end a connection at once."""

    is_ended = False  # this client ended the current connection

    def speak(self, version: Version) -> None:
        self.is_ended = False
        self._protocol = MQTTProtocolVersion(version)
        self._clean_start = True  # like a clean session of 3.1.1: the session ends with the link

    def end_link(self) -> None:
        """End the connection without a DISCONNECT; paho then treats it as lost.

        What waits in the socket is not read: that may be megabytes.
        """
        self.is_ended = True
        link = self.socket()
        if isinstance(link, socket.socket):
            with contextlib.suppress(OSError):  # already closed
                # Not link.shutdown: that of TLS makes another thread send without TLS from then on.
                socket.socket.shutdown(link, socket.SHUT_RDWR)

    def release(self) -> None:
        """Close all sockets; the loop has been stopped, or was never started.

        paho keeps two sockets, with which its threads wake each other, until the garbage collector
        finds the client.
        """
        self._reset_sockets()

    def _sock_recv(self, bufsize: int) -> bytes:
        if self.is_ended:
            raise ConnectionError("ended by this client")
        return super()._sock_recv(bufsize)


def _allow_too_large_in_puback() -> None:
    """Let paho accept the code with which mosquitto refuses a message above message_size_limit.

    MQTT 5 does not define it for PUBACK, and paho would end the link.
    """
    ((code, name),) = (
        (code, name)
        for code, names in ReasonCode.names.items()
        for name in names
        if name == TOO_LARGE
    )
    packets = {name: [*ReasonCode.names[code][name], PacketTypes.PUBACK]}
    ReasonCode.names = {**ReasonCode.names, code: packets}


_allow_too_large_in_puback()
