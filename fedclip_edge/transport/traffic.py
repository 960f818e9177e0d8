"""Bytes on one client's connections, as the kernel counts them."""

from __future__ import annotations

import socket
import struct

from fedclip_edge.transport.base import Traffic

# struct tcp_info of Linux 4.1 and later: bytes acknowledged by the peer, bytes received.
_TCP_INFO_BYTES, _TCP_COUNTERS, _TCP_COUNTERS_AT = 192, struct.Struct("=QQ"), 120


class Meter:
    """The bytes of one connection after another, of which one at most is open."""

    def __init__(self) -> None:
        self._open: socket.socket | None = None
        self._closed = Traffic(0, 0)

    def opened(self, connection: socket.socket) -> None:
        self._open = connection

    def closing(self) -> None:
        """The open connection is about to be closed, and can be asked for the last time."""
        self._closed = self.read() or self._closed
        self._open = None

    def read(self) -> Traffic | None:
        """Bytes so far; None where they cannot be measured."""
        live = _count(self._open)
        if live is None:
            return None
        return Traffic(
            self._closed.up_bytes + live.up_bytes, self._closed.down_bytes + live.down_bytes
        )


def _count(connection: socket.socket | None) -> Traffic | None:
    """The kernel's own count of one connection; None off Linux."""
    if connection is None:
        return Traffic(0, 0)
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return Traffic(*_TCP_COUNTERS.unpack_from(info, _TCP_COUNTERS_AT))
    except (OSError, AttributeError, struct.error):
        return None
