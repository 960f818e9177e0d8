"""Choice of the MQTT version for a broker: 5 if it supports it, else 3.1.1.

A broker without MQTT 5 does one of three things: it answers that the version is not supported; it
closes the connection without an answer (RabbitMQ 3.10); or it reads a CONNECT with a will as a
longer packet of 3.1.1 and waits for the rest (amqtt 0.12). A broker that crashes or refuses a
certificate also closes the connection without an answer. So after such a connection there is one
attempt with 3.1.1. If that gets no answer either, 5 is tried again: only an answer decides the
version.
"""

from __future__ import annotations

from typing import Literal

Version = Literal[5, 4]  # as in a CONNECT packet: 4 is 3.1.1
Where = tuple[str, int]

# After an answer its version is used until this many connections in a row end without an answer:
# another broker may have replaced the first one.
_CLOSED_IN_A_ROW = 3
# Longest wait for an answer to version 5, in seconds, from a broker that has not answered before.
PATIENCE_S = 2.0
_answered: dict[Where, Version] = {}  # by host and port, for the life of the process


class Dialect:
    """The version of one client's next connection."""

    def __init__(self, where: Where) -> None:
        self._where = where
        self._closed = 0
        self.version: Version = _answered.get(where, 5)

    @property
    def is_a_guess(self) -> bool:
        """True while version 5 is only assumed, before the broker has answered."""
        return self.version == 5 and self._where not in _answered

    def answered(self) -> None:
        """Record that the broker answered in this version, even if it refused the client."""
        self._closed = 0
        _answered[self._where] = self.version

    def unsupported(self) -> bool:
        """Record that the broker does not support this version.

        True if the next version should be tried at once.
        """
        if self.version == 4:
            self.version = 5  # another broker must have replaced the one with 3.1.1
            _answered.pop(self._where, None)
            return False
        self.version = _answered[self._where] = 4
        return True

    def closed(self) -> bool:
        """Record that a connection ended without an answer.

        True if the next version should be tried at once.
        """
        self._closed += 1
        if self._where in _answered and self._closed < _CLOSED_IN_A_ROW:
            return False
        _answered.pop(self._where, None)
        self.version = 4 if self.version == 5 else 5
        return self.version == 4
