"""The queue of messages to send, with at most a window of them unacknowledged.

After a reconnect, paho sends all its messages at once, regardless of its own limit. So it gets at
most WINDOW messages of one link at a time. A thread of this module passes them to paho: a callback
cannot do so, because paho calls `on_publish` under the lock that its `publish` takes.
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
    """A broker's limits for one client; MQTT 3.1.1 has no way to announce them."""

    packet_bytes: int | None = None  # None: no limit is known
    receive_maximum: int = 65535  # largest number of unacknowledged messages

    def within(self, packet_bytes: int | None) -> Limits:
        """These limits, with packets of at most `packet_bytes`; None adds no limit."""
        known = [n for n in (self.packet_bytes, packet_bytes) if n is not None]
        return replace(self, packet_bytes=min(known, default=None))

    def fit(self, topic: str, payload: bytes) -> bool:
        """True if a QoS 1 message certainly fits into a packet that the broker accepts."""
        return self.packet_bytes is None or packet_size_bytes(topic, payload) <= self.packet_bytes

    def check(self, where: str, topic: str, payload: bytes) -> None:
        """Raise ConfigError unless the message fits; `where` names the broker in the error."""
        if not self.fit(topic, payload):
            raise ConfigError(
                f"the broker at {where} takes packets of at most {self.packet_bytes} bytes, but a "
                f"message on {topic} has {packet_size_bytes(topic, payload)}; raise the broker's "
                "limit (mosquitto: max_packet_size), or max_packet_bytes under [broker] if that is "
                "lower"
            )


class _Link:
    """One connection's window; messages queued for an older connection are dropped."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.size = min(WINDOW, limits.receive_maximum)
        self.window = threading.Semaphore(self.size)
        self.on_way: deque[str] = deque()  # topics; the broker acknowledges in this order
        self.published = 0  # written by the publishing thread only
        self.acknowledged = 0  # written by paho's thread only


@dataclass(frozen=True)
class _Outgoing:
    topic: str
    payload: bytes
    retain: bool
    link: _Link


class Outbox:
    """One client's outgoing messages. `hand_over` gets a topic, a payload and the retain flag."""

    def __init__(self, hand_over: Callable[[str, bytes, bool], object]) -> None:
        self._hand_over = hand_over
        self._queue: queue.SimpleQueue[_Outgoing | None] = queue.SimpleQueue()
        self._link: _Link | None = None
        self._sender = threading.Thread(target=self._send, name="mqtt-sender", daemon=True)

    def start(self) -> None:
        """Start the thread that hands messages over."""
        self._sender.start()

    def link_up(self, limits: Limits) -> None:
        """Record a new connection, with its own window."""
        self._link = _Link(limits)

    @property
    def is_up(self) -> bool:
        """True while there is a connection."""
        return self._link is not None

    def link_down(self) -> bool:
        """Record that the connection broke and drop what is queued; False if there was none."""
        link, self._link = self._link, None
        if link is None:
            return False
        link.window.release(link.size + 1)  # frees `drain`, and the sender if it waits
        return True

    def put(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Queue a message; drop it if it is too large, or if the link is down or breaks first."""
        link = self._link
        if link is not None and link.limits.fit(topic, payload):
            link.published += 1
            self._queue.put(_Outgoing(topic, payload, retain, link))

    def acknowledged(self) -> str:
        """Record an acknowledgement by the broker; returns the message's topic, or ""."""
        link = self._link
        if link is None or not link.on_way:
            return ""
        link.acknowledged += 1
        link.window.release()
        return link.on_way.popleft()

    def backlog(self) -> int:
        """The number of messages of this link that the broker has not acknowledged yet."""
        link = self._link
        return 0 if link is None else link.published - link.acknowledged

    def drain(self, timeout_s: float) -> None:
        """Hand over what is queued, end the thread, and wait for the acknowledgements.

        Gives up after `timeout_s` seconds.
        """
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
    """The largest possible size in bytes of a QoS 1 PUBLISH packet with this topic and payload."""
    # Type and flags, length (up to 4 bytes), the topic's length, packet identifier, no properties.
    return 1 + 4 + 2 + 2 + 1 + len(topic.encode()) + len(payload)
