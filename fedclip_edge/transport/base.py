"""The contract of a transport, its events, and the wait before a reconnect.

`mqtt.py` implements it over a real broker, `in_memory.py` within one process.

Laws:
- Everything arrives through `next_event`; `publish` never blocks.
- Memory is bounded: what exceeds a client's share of the queues is dropped, the oldest first.
- The messages of one client arrive in order, each at least once. A message that was not delivered
  when the link broke is dropped, not queued: the party that still needs its effect sends it again.
- The transport reconnects on its own. If the broker refuses the client permanently, `next_event`
  raises RefusedError.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

# Limit of the wait; with it a small fleet reconnects within ten seconds after the broker is back.
_RECONNECT_MAX_S = 8.0
# The same, while the broker ends every link: each attempt sends large messages again.
_LIMITED_MAX_S = 64.0
# TLS connections per second that a broker on two cores accepts without building up a queue.
_RECONNECTS_PER_S = 50


@dataclass(frozen=True)
class Connected:
    """The link is up and the subscriptions are made."""


@dataclass(frozen=True)
class Disconnected:
    """The link broke; the transport restores it.

    `reason` is empty while a limit of the broker, which was reported, breaks every link.
    """

    reason: str


@dataclass(frozen=True)
class Received:
    """A message arrived."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Flooding:
    """A client sends far more than its share: thousands of its messages were dropped."""

    sender: str


Event = Connected | Disconnected | Received | Flooding


@dataclass(frozen=True)
class Will:
    """The message that the broker publishes, retained, if this client's link breaks."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Traffic:
    """Bytes on this client's sockets since it started, with MQTT framing, without TCP headers."""

    up_bytes: int
    down_bytes: int


class Transport(Protocol):
    """One client's link to the broker."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Send a message. It is dropped if the link is down or breaks first. Never blocks.

        Raises ConfigError if the packet is larger than the broker's known limit.
        """

    def publish_parts(self, topic: str, name: str, parts: Iterator[bytes], part_bytes: int) -> None:
        """Send a large payload as messages, each made from `parts` when its turn comes.

        `name` names the payload, and `part_bytes` is the size of its largest part. While a payload
        of the same name waits on the topic this adds nothing; one of another name is replaced.
        Never blocks. Parts are lost if the link is down or breaks first. `parts` may be used on
        another thread. Raises ConfigError as `publish` does.
        """

    def is_sending(self, topic: str, name: str) -> bool:
        """True while parts of the payload of this name wait on the topic."""

    def packet_bytes(self) -> int | None:
        """The largest packet in bytes that the broker accepts, or None if no limit is known.

        Topic and headers count. It is the value of the last `Connected` that was returned.
        """

    def backlog(self) -> int:
        """The number of messages published on this link that the broker has not acknowledged."""

    def next_event(self, timeout_s: float) -> Event | None:
        """The next event, or None if there is none within `timeout_s` seconds.

        Raises RefusedError if the broker refused this client permanently.
        """

    def resubscribe(self) -> None:
        """Ask the broker for the messages retained on this client's topics. Never blocks."""

    def set_topics(self, topics: Iterable[str], *, anew: bool = False) -> None:
        """Replace the subscriptions; those that are in both stay. Never blocks.

        New ones are made first, so a message on a topic of both may arrive twice. With `anew` the
        link is ended and made again at once, as if it had broken. So everything that waits on the
        way, in both directions, is dropped.
        """

    def expect(self, devices: int) -> None:
        """Set the number of devices that would reconnect at once after the broker has failed."""

    def traffic(self) -> Traffic | None:
        """Bytes sent and received so far; None if they cannot be measured."""

    def close(self) -> None:
        """Send what is queued, then disconnect, so that the will is not published."""


def device_client(fleet: str, device: str, incarnation: str) -> str:
    """A device's MQTT client id. Only the device and its coordinator know `incarnation`.

    If two connections use one client id, the broker ends the older one, even if they belong to
    different users. So a client id must not be guessable.
    """
    return f"{fleet}.{device}.{incarnation}"


def coordinator_client() -> str:
    """A random MQTT client id for a coordinator, so that no other client can guess it."""
    return f"coordinator-{secrets.token_hex(8)}"


def reconnect_wait_s(failures: int, devices: int, draw: float, limits: int = 0) -> float:
    """Seconds to wait before the next connection, after `failures` failed attempts.

    It is 2**failures - 1, at most 7, plus a random part. `draw`, uniform in [0, 1), spreads that
    part over one second, or over the time that the broker needs to accept all `devices` if that is
    longer. After `limits` links in a row that a limit of the broker ended, the first part is
    2**limits - 1 if that is more, at most 63.
    """
    grows = max(min(2.0**failures, _RECONNECT_MAX_S), min(2.0**limits, _LIMITED_MAX_S)) - 1
    return grows + draw * max(1.0, devices / _RECONNECTS_PER_S)
