"""Recognition of limits that a broker has but does not announce.

Brokers announce the largest packet in MQTT 5, and no other limit. What a client sees of the others:

| limit | MQTT 5 | MQTT 3.1.1 |
|---|---|---|
| mosquitto `message_size_limit` | PUBACK "Packet too large" | an ordinary PUBACK; see upload.py |
| mosquitto `max_packet_size` | announced | the link ends |
| RabbitMQ `max_message_size` (3.10) | - | the link gets stuck |
| mosquitto `memory_limit` | the link ends | the link ends |
| mosquitto `max_connections` | a connection is closed without an answer | the same |

Laws:
- A refused message is lost, and never counts as delivered. The party that needs its effect sends it
  again.
- A limit on messages is reported once while it lasts, and once when a message of that size has been
  taken.
- A link that ends, or gets stuck, is the broker's answer to a message if that happens ENDS times in
  a row: the message was on its way, has more than SMALL_BYTES, and none of its size was taken.
"""

from __future__ import annotations

ENDS = 3
SMALL_BYTES = 4096  # a broker with a lower limit cannot be used
CLOSED = 2  # connections in a row that are closed without an answer, before the cause is reported
# Every message of the protocol is smaller than this many bytes.
NEEDED_BYTES = 200_000
TOO_LARGE = "Packet too large"  # a reason in PUBACK, as MQTT 5 names it in other packets
# Reasons for the end of a link that have nothing to do with the messages on their way.
_OTHER_REASONS = frozenset(
    ("Session taken over", "Server shutting down", "Keep alive timeout", "Administrative action")
)


class LimitWatch:
    """The limits of the broker at `where` ("host:port"), as one client has seen them."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._size_bytes = 0  # a packet of this size was not taken; 0 if all were
        self._taken_bytes = 0  # the largest packet that was taken on this link
        self._closed = 0  # connections in a row that were closed without an answer
        self.ends = 0  # links in a row that ended with a packet of this size on its way
        self.is_reported = False  # a limit on messages was reported, and is not over

    def taken(self, packet_bytes: int) -> bool:
        """Record a packet that the broker took; True if a limit that was reported is over."""
        self._taken_bytes = max(self._taken_bytes, packet_bytes)
        if not self._size_bytes or packet_bytes < self._size_bytes:
            return False
        was_reported = self.is_reported
        self._size_bytes, self.ends, self.is_reported = 0, 0, False
        return was_reported

    def too_large(self, packet_bytes: int) -> str:
        """Record a packet that the broker refused for its size; returns what to report, or ""."""
        return self._report(packet_bytes, f"the broker at {self._where} refuses messages of")

    def link_ended(self, reason: str, on_way_bytes: list[int]) -> str:
        """Record the end of a link, with the sizes of the packets on their way.

        Returns what to report, or "".
        """
        largest, taken = max(on_way_bytes, default=0), self._taken_bytes
        self._taken_bytes = 0
        if reason in _OTHER_REASONS or largest <= max(taken, SMALL_BYTES):
            self.ends = 0
            return ""
        self.ends += 1
        if self.ends < ENDS and not self.is_reported:
            self._size_bytes = min(largest, self._size_bytes or largest)
            return ""
        return self._report(
            largest,
            f"the connection to the broker at {self._where} ended, or got stuck, {self.ends} times "
            "in a row at a message of",
        )

    def closed_without_answer(self) -> str:
        """Record a connection that was closed before an answer; returns what to report, or ""."""
        self._closed += 1
        if self._closed < CLOSED:
            return ""
        return closes_connections(self._where)

    def answered(self) -> None:
        """Record that the broker answered a connection."""
        self._closed = 0

    def _report(self, packet_bytes: int, problem: str) -> str:
        self._size_bytes = min(packet_bytes, self._size_bytes or packet_bytes)
        if self.is_reported:
            return ""
        self.is_reported = True
        return (
            f"{problem} {packet_bytes} bytes; raise its limits to {NEEDED_BYTES} bytes or more "
            "(mosquitto: message_size_limit and max_packet_size, and memory_limit for all messages "
            "together; RabbitMQ: mqtt.max_packet_size_authenticated and max_message_size), or set "
            "max_packet_bytes under [broker] to a lower number"
        )


def closes_connections(where: str) -> str:
    """The likely cause and the remedy if `where` ("host:port") closes connections at once."""
    return (
        f"{where} accepts connections but closes them without an answer; the broker's limit of "
        "connections may be reached: raise it (mosquitto: max_connections, memory_limit). If this "
        "is no MQTT broker, check host, port and ca under [broker]"
    )
