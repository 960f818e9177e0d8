"""A socket that reads ahead, for paho.

paho reads each packet with three or more calls: one byte for its kind, one for each byte of its
length, then the rest. Before each packet it waits with select(). With a thousand devices, this took
a fifth of the coordinator's CPU time (docs/explanation/scale.md).

Laws:
- The bytes that `recv` returns are those that arrived, in their order.
- `recv` waits, fails or returns nothing exactly when the socket itself does and no byte is kept.
- `pending` counts every byte that select() does not see.
"""

from __future__ import annotations

from typing import Any

_AHEAD_BYTES = 128 * 1024  # a whole chunk (protocol/messages.py)


class ReadAhead:
    """A connected socket, plain or TLS, with the bytes that were read but not asked for yet."""

    def __init__(self, connection: Any) -> None:
        self._socket = connection
        self._kept = bytearray(_AHEAD_BYTES)
        self._view = memoryview(self._kept)
        self._first = self._end = 0  # the bytes of _kept that were not asked for yet

    def recv(self, size_bytes: int) -> bytes:
        """Up to `size_bytes` bytes; empty at the end of the connection.

        Raises what the socket's own `recv` raises; BlockingIOError, or SSLWantReadError under TLS,
        if nothing has arrived.
        """
        if self._first == self._end:
            self._first, self._end = 0, self._socket.recv_into(self._kept)
        last = min(self._first + size_bytes, self._end)
        taken = bytes(self._view[self._first : last])
        self._first = last
        return taken

    def pending(self) -> int:
        """The number of bytes that can be read without waiting, though select() would wait."""
        inside = getattr(self._socket, "pending", None)  # of a TLS record
        return self._end - self._first + (0 if inside is None else int(inside()))

    def send(self, data: bytes | bytearray) -> int:
        return int(self._socket.send(data))

    def fileno(self) -> int:
        return int(self._socket.fileno())

    def setblocking(self, flag: bool) -> None:
        self._socket.setblocking(flag)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self._socket.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, size_bytes: int) -> bytes:
        return bytes(self._socket.getsockopt(level, option, size_bytes))

    def shutdown(self, how: int) -> None:
        self._socket.shutdown(how)

    def close(self) -> None:
        self._socket.close()
