"""The contract of a transport. `mqtt.py` keeps it over a real broker, `in_memory.py` in one process.

- `next_event` is the one way in, and `publish` never blocks.
- Messages of one client come in order, each at least once; what was not delivered when the link
  went away is forgotten, not queued: every message of the protocol is sent again by whoever still
  needs its effect.
- The link comes back by itself. Who is refused for good learns it from `next_event`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Protocol

# A broker that is back is found again within ten seconds.
_RECONNECT_MAX_S = 8.0
# What a broker on two cores lets in with a handshake each, and without a queue of its own.
_RECONNECTS_PER_S = 50


@dataclass(frozen=True)
class Connected:
    """The link is up and the subscriptions stand."""


@dataclass(frozen=True)
class Disconnected:
    """The link went away; it comes back by itself."""

    reason: str


@dataclass(frozen=True)
class Received:
    """A message came."""

    topic: str
    payload: bytes


Event = Connected | Disconnected | Received


@dataclass(frozen=True)
class Will:
    """The message that the broker publishes, retained, when this client vanishes."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Traffic:
    """Bytes on this client's sockets since it started, MQTT framing included, TCP's own not."""

    up_bytes: int
    down_bytes: int


class Transport(Protocol):
    """One client's way to send and to be told."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Sends, or forgets the message if the link is or goes down. Never blocks.

        Raises ConfigError where the broker takes no packet as large as this one.
        """

    def packet_bytes(self) -> int | None:
        """The largest packet that the broker takes, topic and headers included, as of the last
        `Connected`; None where nothing is known of a limit.
        """

    def backlog(self) -> int:
        """Messages published on this link that the broker has not acknowledged yet."""

    def next_event(self, timeout_s: float) -> Event | None:
        """The next event, or None after `timeout_s`.

        Raises RefusedError where the broker will never let this client in.
        """

    def resubscribe(self) -> None:
        """Has the broker say again what it retains on this client's topics. Never blocks."""

    def expect(self, devices: int) -> None:
        """Expect so many devices to come back at the same time, should the broker go away."""

    def traffic(self) -> Traffic | None:
        """Bytes that went over the wire; None where they cannot be measured."""

    def close(self) -> None:
        """Says good-bye, so that the will is not published; sends what is queued first."""


def device_client(fleet: str, device: str, incarnation: str) -> str:
    """A device's client id: only it and its coordinator know `incarnation`.

    A broker ends the older of two connections with one client id, whoever they are of.
    """
    return f"{fleet}.{device}.{incarnation}"


def coordinator_client() -> str:
    """A client id that nobody else can know."""
    return f"coordinator-{secrets.token_hex(8)}"


def reconnect_wait_s(failures: int, devices: int, draw: float) -> float:
    """Seconds to stay away after so many failed attempts; `draw` is uniform in [0, 1).

    Drawn from at least a second, and from as long as the broker needs for all of a large fleet.
    """
    grows = min(2.0**failures, _RECONNECT_MAX_S) - 1
    return grows + draw * max(1.0, devices / _RECONNECTS_PER_S)
