"""Byte counts of one client's connections, from the kernel."""

from __future__ import annotations

import socket
import struct

from fedclip_edge.transport.base import Traffic

# struct tcp_info of Linux 4.1 and later: bytes acknowledged by the peer, bytes received.
_TCP_INFO_BYTES, _TCP_COUNTERS, _TCP_COUNTERS_AT = 192, struct.Struct("=QQ"), 120


class Meter:
    """The sum of bytes over a client's successive connections, at most one of them open."""

    def __init__(self) -> None:
        self._open: socket.socket | None = None
        self._closed = Traffic(0, 0)

    def opened(self, connection: socket.socket) -> None:
        self._open = connection

    def closing(self) -> None:
        """Add the open connection's count to the sum; call it just before the connection closes."""
        self._closed = self.read() or self._closed
        self._open = None

    def read(self) -> Traffic | None:
        """Bytes so far over all connections; None if they cannot be measured."""
        live = _count(self._open)
        if live is None:
            return None
        return Traffic(
            self._closed.up_bytes + live.up_bytes, self._closed.down_bytes + live.down_bytes
        )


def _count(connection: socket.socket | None) -> Traffic | None:
    """The kernel's count for one connection; None on systems other than Linux."""
    if connection is None:
        return Traffic(0, 0)
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return Traffic(*_TCP_COUNTERS.unpack_from(info, _TCP_COUNTERS_AT))
    except (OSError, AttributeError, struct.error):
        return None
