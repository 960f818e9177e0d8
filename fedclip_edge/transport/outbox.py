"""The queue of messages to send, with at most a window of them unacknowledged.

After a reconnect, paho sends all its messages at once, regardless of its own limit. So it gets at
most WINDOW messages of one link at a time. A thread of this module passes them to paho: a callback
cannot do so, because paho calls `on_publish` under the lock that its `publish` takes.

Laws:
- What waits is bounded, in messages and in bytes. Receivers take turns, and what exceeds one
  receiver's share drops the oldest of its messages (fair_queue.py).
- The parts of a large payload are made one at a time, when they are sent. Until then only the
  iterator that makes them is held, and at most one for each topic.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from fedclip_edge.errors import ConfigError
from fedclip_edge.transport.fair_queue import FairQueue, Room

WINDOW = 8
# A link on which the broker acknowledges nothing for so long is useless: it lost acknowledgements.
# On the slowest link that is useful, a large message takes a minute.
STUCK_S = 120.0
# All messages that wait, and those to one receiver of many.
TOTAL = Room(16_384, 32 * 2**20)
SHARE = Room(512, 4 * 2**20)
# For a client that sends to one receiver. One receiver can hold at most half of a queue.
ALONE = Room(8_192, 64 * 2**20)
_TWICE_ALONE = Room(2 * ALONE.items, 2 * ALONE.size_bytes)
# An estimate for an iterator of parts, with the ranges that it was asked for.
_PARTS_BYTES = 4096


@dataclass(frozen=True)
class Limits:
    """A broker's limits for one client; MQTT 3.1.1 has no way to announce them."""

    packet_bytes: int | None = None  # None: no limit is known
    receive_maximum: int = 65535  # largest number of unacknowledged messages

    def within(self, packet_bytes: int | None) -> Limits:
        """These limits, with packets of at most `packet_bytes`; None adds no limit."""
        known = [n for n in (self.packet_bytes, packet_bytes) if n is not None]
        return replace(self, packet_bytes=min(known, default=None))

    def fit(self, topic: str, size_bytes: int) -> bool:
        """True if a QoS 1 message of this payload size certainly fits into the broker's packets."""
        packet = packet_size_bytes(topic, size_bytes)
        return self.packet_bytes is None or packet <= self.packet_bytes

    def check(self, where: str, topic: str, size_bytes: int) -> None:
        """Raise ConfigError unless the message fits; `where` names the broker in the error."""
        if not self.fit(topic, size_bytes):
            raise ConfigError(
                f"the broker at {where} takes packets of at most {self.packet_bytes} bytes, but a "
                f"message on {topic} has {packet_size_bytes(topic, size_bytes)}; raise the broker's "
                "limit (mosquitto: max_packet_size), or max_packet_bytes under [broker] if that is "
                "lower"
            )


@dataclass(frozen=True)
class Sent:
    """A message that was handed over; `packet_bytes` is the largest possible size of its packet."""

    topic: str
    packet_bytes: int


class _Link:
    """One connection's window; messages queued for an older connection are dropped."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.size = min(WINDOW, limits.receive_maximum)
        self.window = threading.Semaphore(self.size)
        self.on_way: deque[Sent] = deque()  # the broker acknowledges in this order
        self.moved_at = 0.0  # time of the last acknowledgement, or of the first message after it


@dataclass(frozen=True, eq=False)
class _Outgoing:
    """One message, or a payload in parts."""

    topic: str
    content: bytes | Iterator[bytes]
    retain: bool
    link: _Link
    name: str = ""  # of a payload in parts

    @property
    def size_bytes(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else _PARTS_BYTES


class Outbox:
    """One client's outgoing messages. `hand_over` gets a topic, a payload and the retain flag.

    `receiver_of` gives the receiver of a message by its topic. Without it, all messages count as
    those to one receiver.
    """

    def __init__(
        self,
        hand_over: Callable[[str, bytes, bool], object],
        receiver_of: Callable[[str], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hand_over = hand_over
        self._clock = clock
        self._receiver_of = receiver_of or _nobody
        rooms = (_TWICE_ALONE, ALONE) if receiver_of is None else (TOTAL, SHARE)
        self._waiting = FairQueue[_Outgoing](*rooms)
        self._in_parts: dict[str, _Outgoing] = {}  # by topic; also while a part is being sent
        self._unsettled = 0  # messages of this link that were queued and not acknowledged
        self._changed = threading.Condition()  # guards the four above
        self._link: _Link | None = None
        self._closing = False
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

    def link_down(self) -> list[Sent] | None:
        """Record that the connection broke, and drop what is queued.

        Returns the messages on their way, or None if there was no connection.
        """
        with self._changed:
            link, self._link = self._link, None
            self._waiting.clear()
            self._in_parts.clear()
            self._unsettled = 0
        if link is None:
            return None
        link.window.release(link.size + 1)  # frees `drain`, and the sender if it waits
        return list(link.on_way)

    def put(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Queue a message; drop it if it is too large, or if the link is down or breaks first."""
        with self._changed:
            link = self._link
            if link is not None and link.limits.fit(topic, len(payload)):
                self._unsettled += 1
                self._queue(_Outgoing(topic, payload, retain, link))

    def put_parts(self, topic: str, name: str, parts: Iterator[bytes]) -> None:
        """Queue a payload in parts, each no larger than the broker's packets.

        While a payload of the same name waits on the topic, this adds nothing. One of another name
        is replaced. If the link is down or breaks first, the parts are dropped.
        """
        with self._changed:
            link = self._link
            if link is not None and not self.holds(topic, name):
                self._in_parts[topic] = made = _Outgoing(topic, parts, False, link, name)
                self._unsettled += 1
                self._queue(made)

    def holds(self, topic: str, name: str) -> bool:
        """True while parts of the payload of this name wait on the topic."""
        waits = self._in_parts.get(topic)
        return waits is not None and waits.name == name

    def acknowledged(self) -> Sent | None:
        """Record an answer of the broker to a message; returns the message, if it is known."""
        with self._changed:
            link = self._link
            if link is None or not link.on_way:
                return None
            self._unsettled -= 1
            sent = link.on_way.popleft()
            link.moved_at = self._clock()
        link.window.release()
        return sent

    def backlog(self) -> int:
        """The number of messages of this link that the broker has not acknowledged yet.

        The parts of a payload that have not been made yet count as one.
        """
        return self._unsettled

    def is_stuck(self) -> bool:
        """True if messages are on their way, but none was acknowledged for STUCK_S seconds."""
        with self._changed:
            link = self._link
            if link is None or not link.on_way:
                return False
            return self._clock() - link.moved_at >= STUCK_S

    def drain(self, timeout_s: float) -> None:
        """Hand over what is queued, end the thread, and wait for the acknowledgements.

        Gives up after `timeout_s` seconds.
        """
        link, deadline = self._link, time.monotonic() + timeout_s
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._sender.is_alive():
            self._sender.join(timeout_s)
        if link is not None:
            for _ in range(link.size):
                link.window.acquire(timeout=max(0.0, deadline - time.monotonic()))

    def _queue(self, message: _Outgoing) -> None:
        if message.link is not self._link:
            return
        receiver = self._receiver_of(message.topic)
        for dropped in self._waiting.put(receiver, message, message.size_bytes):
            self._forget(dropped)
        self._changed.notify()

    def _forget(self, message: _Outgoing) -> None:
        self._unsettled -= 1
        if self._in_parts.get(message.topic) is message:
            del self._in_parts[message.topic]

    def _send(self) -> None:
        while (message := self._take()) is not None:
            content = message.content
            if isinstance(content, bytes):
                self._send_one(message, content)
            elif (part := self._next_part(message, content)) is not None:
                self._send_one(message, part)
                with self._changed:
                    self._queue(message)

    def _next_part(self, message: _Outgoing, parts: Iterator[bytes]) -> bytes | None:
        """The next part, or None if there is none, or the payload was replaced."""
        part = next(parts, None) if self._is_wanted(message) else None
        with self._changed:
            if message.link is not self._link:
                return None
            if part is None:
                self._forget(message)
            else:
                self._unsettled += 1  # this part; the rest is counted already
        return part

    def _is_wanted(self, message: _Outgoing) -> bool:
        return message.link is self._link and self._in_parts.get(message.topic) is message

    def _take(self) -> _Outgoing | None:
        """The next message; waits for one. None once the queue is empty and the end is wanted."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) or self._closing)
            taken = self._waiting.take()
            return None if taken is None else taken[1]

    def _send_one(self, message: _Outgoing, payload: bytes) -> None:
        message.link.window.acquire()
        with self._changed:
            if message.link is not self._link:
                return
            if not message.link.on_way:
                message.link.moved_at = self._clock()
            size_bytes = packet_size_bytes(message.topic, len(payload))
            message.link.on_way.append(Sent(message.topic, size_bytes))
        self._hand_over(message.topic, payload, message.retain)


def packet_size_bytes(topic: str, size_bytes: int) -> int:
    """The largest possible size in bytes of a QoS 1 PUBLISH packet with this topic and payload."""
    # Type and flags, length (up to 4 bytes), the topic's length, packet identifier, no properties.
    return 1 + 4 + 2 + 2 + 1 + len(topic.encode()) + size_bytes


def _nobody(_topic: str) -> str:
    return ""
