"""Messages that wait to be sent, with at most a window of them on their way.

paho sends everything it holds at once after a reconnect, whatever its own limit says; so it holds
no more than WINDOW messages of one link, and a thread of our own hands them over, because paho
calls `on_publish` under the lock that its `publish` takes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from fedclip_edge.errors import ConfigError

WINDOW = 8


@dataclass(frozen=True)
class Limits:
    """Limits of a broker for one client; MQTT 3.1.1 has no way to announce them."""

    packet_bytes: int | None = None  # None: nothing is known of a limit
    receive_maximum: int = 65535  # messages that it has not acknowledged

    def within(self, packet_bytes: int | None) -> Limits:
        """These, and no larger packets than that either; None where that says nothing."""
        known = [n for n in (self.packet_bytes, packet_bytes) if n is not None]
        return replace(self, packet_bytes=min(known, default=None))

    def fit(self, topic: str, payload: bytes) -> bool:
        """True where a message of QoS 1 is within the limit."""
        return self.packet_bytes is None or packet_size_bytes(topic, payload) <= self.packet_bytes

    def check(self, where: str, topic: str, payload: bytes) -> None:
        """Raises ConfigError where a message of QoS 1 is larger than what it takes."""
        if not self.fit(topic, payload):
            raise ConfigError(
                f"the broker at {where} takes packets of {self.packet_bytes} bytes, and a message "
                f"on {topic} has {packet_size_bytes(topic, payload)}; raise its limit (mosquitto: "
                "max_packet_size), or max_packet_bytes under [broker] where that is what limits it"
            )


class _Link:
    """One connection's window; what waits for an older one is forgotten."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.size = min(WINDOW, limits.receive_maximum)
        self.window = threading.Semaphore(self.size)
        self.on_way: deque[str] = deque()  # topics; a broker acknowledges in their order
        self.published = 0  # written by the publishing thread alone
        self.acknowledged = 0  # written by paho's thread alone


@dataclass(frozen=True)
class _Outgoing:
    topic: str
    payload: bytes
    retain: bool
    link: _Link


class Outbox:
    """One client's messages out. `hand_over` takes topic, payload and whether to retain."""

    def __init__(self, hand_over: Callable[[str, bytes, bool], object]) -> None:
        self._hand_over = hand_over
        self._queue: queue.SimpleQueue[_Outgoing | None] = queue.SimpleQueue()
        self._link: _Link | None = None
        self._sender = threading.Thread(target=self._send, name="mqtt-sender", daemon=True)

    def start(self) -> None:
        """From here on messages are handed over."""
        self._sender.start()

    def link_up(self, limits: Limits) -> None:
        """A connection stands, with a window of its own."""
        self._link = _Link(limits)

    @property
    def is_up(self) -> bool:
        """True while a connection stands."""
        return self._link is not None

    def link_down(self) -> bool:
        """The connection is gone, and with it what waits; False where none stood."""
        link, self._link = self._link, None
        if link is None:
            return False
        link.window.release(link.size + 1)  # who drains passes, and the sender, which may wait
        return True

    def put(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Sends it in its turn; forgets it if the link is or goes down, or takes none so large."""
        link = self._link
        if link is not None and link.limits.fit(topic, payload):
            link.published += 1
            self._queue.put(_Outgoing(topic, payload, retain, link))

    def acknowledged(self) -> str:
        """The broker has acknowledged one more; its topic."""
        link = self._link
        if link is None or not link.on_way:
            return ""
        link.acknowledged += 1
        link.window.release()
        return link.on_way.popleft()

    def backlog(self) -> int:
        """Messages of this link that the broker has not acknowledged yet."""
        link = self._link
        return 0 if link is None else link.published - link.acknowledged

    def drain(self, timeout_s: float) -> None:
        """Hands over what is queued and waits until all of it is acknowledged; then ends."""
        link, deadline = self._link, time.monotonic() + timeout_s
        self._queue.put(None)
        if self._sender.is_alive():
            self._sender.join(timeout_s)
        if link is not None:
            for _ in range(link.size):
                link.window.acquire(timeout=max(0.0, deadline - time.monotonic()))

    def _send(self) -> None:
        while (message := self._queue.get()) is not None:
            if message.link is not self._link:
                continue
            message.link.window.acquire()
            if message.link is self._link:
                message.link.on_way.append(message.topic)
                self._hand_over(message.topic, message.payload, message.retain)


def packet_size_bytes(topic: str, payload: bytes) -> int:
    """Largest size of a message of QoS 1 in bytes: its length field has up to 4 of them."""
    # Type and flags, length, the topic's length, packet identifier, no properties.
    return 1 + 4 + 2 + 2 + 1 + len(topic.encode()) + len(payload)
