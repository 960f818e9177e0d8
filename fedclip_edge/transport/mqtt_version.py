"""Which version of MQTT to speak to a broker: 5 where it is understood, 3.1.1 where it is not.

A broker without MQTT 5 names the version as unsupported, closes the connection without a word
(RabbitMQ 3.10), or takes a CONNECT with a will for a longer one of 3.1.1 and waits for the rest
(amqtt 0.12). A broker that dies, or that refuses a certificate, does the like. So silence makes
3.1.1 worth an attempt, and only an answer to it is believed: where that connection ends as well, 5
comes next again.
"""

from __future__ import annotations

from typing import Literal

Version = Literal[5, 4]  # as CONNECT says it: 4 is 3.1.1
Where = tuple[str, int]

# What a broker has answered once holds until it closes this many connections in a row in silence:
# it may have been replaced by another.
_CLOSED_IN_A_ROW = 3
# How long a broker that is not known to speak 5 may keep silent on it.
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
        """The broker took part in a connection of this version, whether it let the client in."""
        self._closed = 0
        _answered[self._where] = self.version

    def unsupported(self) -> bool:
        """The broker says that it has not this version; whether another is worth it at once."""
        if self.version == 4:
            self.version = 5  # it is another broker by now
            _answered.pop(self._where, None)
            return False
        self.version = _answered[self._where] = 4
        return True

    def closed(self) -> bool:
        """The connection ended unanswered; whether another version is worth it at once."""
        self._closed += 1
        if self._where in _answered and self._closed < _CLOSED_IN_A_ROW:
            return False
        _answered.pop(self._where, None)
        self.version = 4 if self.version == 5 else 5
        return self.version == 4
