"""Detection of chunks that get lost on each attempt, although the link is up.

In MQTT 3.1.1, mosquitto acknowledges a message above its message_size_limit and drops it. Neither
side sees anything, except that the same chunks are asked for again and again.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge import log

REQUESTS = 5  # in a row without effect; on a link that only loses some chunks, one has effect
_HINT = (
    "the broker may drop messages above a limit without an error: raise its limits (mosquitto: "
    "message_size_limit, max_queued_messages, max_queued_bytes), or set max_packet_bytes under "
    "[broker] of agent.toml and fleet.toml to a lower number"
)


@dataclass(eq=False)
class LostParts:
    """The requests for the chunks `of` one kind of payload, "model" or "update"."""

    of: str
    _requests: int = 0  # in a row without effect

    def requested(self, count: int) -> None:
        """Record a request for `count` chunks, after which none of them has arrived yet."""
        self._requests += 1
        if self._requests == REQUESTS:
            log.event("parts_lost", of=self.of, count=count, hint=_HINT)

    def arrived(self) -> None:
        """Record that chunks arrived after the last request."""
        if self._requests >= REQUESTS:
            log.event("parts_arrive", of=self.of)
        self._requests = 0
