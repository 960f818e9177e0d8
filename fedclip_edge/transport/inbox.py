"""The queue of one client's events, and of its log lines about failures.

Laws:
- paho's callbacks only add to this queue. With long work inside a callback, paho would miss the
  keepalive and the broker would end the link.
- Log lines are written when they are taken from the queue, so that no callback waits for the log.
- Messages wait in a bounded queue in which senders take turns (fair_queue.py). The sender is read
  from the topic, before the signature and the content, so that a flood costs as little as possible.
- What was dropped is counted and logged, at once and then once a minute, with the sender's name.
- Events of the link come before messages. When the link breaks, the messages that still wait are
  dropped: each party says again what is still needed.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from fedclip_edge import log
from fedclip_edge.errors import RefusedError
from fedclip_edge.transport.base import Connected, Disconnected, Event, Flooding, Received
from fedclip_edge.transport.fair_queue import FairQueue, Room
from fedclip_edge.transport.outbox import Limits

# All waiting messages together, and those of one sender of many. A share holds the chunks of a
# large upload that arrive while the reader is busy; chunks beyond it are asked for again.
TOTAL = Room(16_384, 64 * 2**20)
SHARE = Room(512, 16 * 2**20)
# For a client that hears one sender. One sender can hold at most half of a queue (fair_queue.py).
ALONE = Room(8_192, 64 * 2**20)
_TWICE_ALONE = Room(2 * ALONE.items, 2 * ALONE.size_bytes)
REPORT_S = 60.0  # the least time between two reports of dropped messages
# After so many dropped messages of one sender in REPORT_S there is a Flooding event. A large upload
# that arrives while the reader is busy loses fewer.
FLOOD = 1_024
_NAMES_COUNTED = 1_000  # further senders share one count


@dataclass(frozen=True)
class _Up:
    """The link is up, with these limits of the broker."""

    limits: Limits


@dataclass(frozen=True)
class _Note:
    """A line for the log."""

    event: str
    reason: str
    topic: str | None = None


@dataclass(frozen=True)
class _RefusedForGood:
    """A permanent refusal, queued behind the events before it."""

    reason: str


class Inbox:
    """One client's events. `limits` are those of the last `Connected` taken from the queue.

    `sender_of` gives the sender of a message by its topic. Without it, all messages count as those
    of one sender.
    """

    def __init__(
        self,
        limits: Limits,
        sender_of: Callable[[str], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.refusal = ""  # the reason for a permanent refusal
        self.complaint = ""  # the reason why the last attempt to connect failed
        self._sender_of = sender_of or _nobody
        self._clock = clock
        self._filled = threading.Condition()
        self._of_the_link: deque[Disconnected | _Up | _Note | _RefusedForGood] = deque()
        rooms = (_TWICE_ALONE, ALONE) if sender_of is None else (TOTAL, SHARE)
        self._messages = FairQueue[Received](*rooms)
        self._dropped: Counter[str] = Counter()
        self._floods: dict[str, None] = {}  # senders to report with Flooding, in order
        self._report_at = clock()
        self._noted: set[_Note] = set()  # log lines queued since the link was last up
        self._first_answer = threading.Event()

    def put(self, message: Received) -> None:
        """Queue a message, and drop what exceeds its sender's share."""
        sender = self._sender_of(message.topic)
        size_bytes = len(message.topic) + len(message.payload)
        with self._filled:
            dropped = self._messages.put(sender, message, size_bytes)
            if dropped:
                full = sender not in self._dropped and len(self._dropped) >= _NAMES_COUNTED
                name = "" if full else sender
                before = self._dropped[name] // FLOOD
                self._dropped[name] += len(dropped)
                if name and before != self._dropped[name] // FLOOD:
                    self._floods[name] = None
            self._filled.notify()

    def link_down(self, event: Disconnected) -> None:
        """Queue the event, and drop the messages that wait."""
        with self._filled:
            self._messages.clear()
        self._put(event)

    def link_up(self, limits: Limits) -> None:
        """Queue `Connected` and clear the reasons why earlier attempts failed."""
        self.complaint = ""
        self._noted.clear()
        self._first_answer.set()
        self._put(_Up(limits))

    def note(self, event: str, reason: str, topic: str | None = None) -> None:
        """Queue a line for the log; the same line only once until the link is up again."""
        said = _Note(event, reason, topic)
        if said not in self._noted:
            self._noted.add(said)
            self._put(said)

    def complain(self, reason: str) -> None:
        """Record and log the reason why there is no link at the moment."""
        self.complaint = reason
        self.note("broker_not_reached", reason)

    def refuse(self, reason: str) -> None:
        """Queue a permanent refusal: `next_event` raises RefusedError when it takes it out."""
        self.refusal = reason
        self._put(_RefusedForGood(reason))
        self._first_answer.set()

    def await_first_answer(self, timeout_s: float) -> bool:
        """True if the link came up, or was refused permanently, within `timeout_s` seconds."""
        return self._first_answer.wait(timeout_s)

    def next_event(self, timeout_s: float) -> Event | None:
        """The next event, as `Transport.next_event` defines it; writes log lines on the way."""
        deadline = self._clock() + timeout_s
        while True:
            self._report()
            event = self._take(max(0.0, deadline - self._clock()))
            if isinstance(event, _RefusedForGood):
                raise RefusedError(event.reason)
            if isinstance(event, _Up):
                self.limits = event.limits
                return Connected()
            if not isinstance(event, _Note):
                return event
            log.event(event.event, topic=event.topic, reason=event.reason)

    def _put(self, event: Disconnected | _Up | _Note | _RefusedForGood) -> None:
        with self._filled:
            self._of_the_link.append(event)
            self._filled.notify()

    def _take(
        self, timeout_s: float
    ) -> Received | Flooding | Disconnected | _Up | _Note | _RefusedForGood | None:
        with self._filled:
            self._filled.wait_for(lambda: self._of_the_link or len(self._messages), timeout_s)
            if self._of_the_link:
                return self._of_the_link.popleft()
            if self._floods:
                sender = next(iter(self._floods))
                del self._floods[sender]
                return Flooding(sender)
            taken = self._messages.take()
            return None if taken is None else taken[1]

    def _report(self) -> None:
        """Log the messages that were dropped, by sender, if that is due."""
        if not self._dropped or self._clock() < self._report_at:
            return
        self._report_at = self._clock() + REPORT_S
        with self._filled:
            dropped, self._dropped = self._dropped, Counter()
        for sender, count in dropped.items():
            log.event("messages_dropped", device=sender or None, count=count)


def _nobody(_topic: str) -> str:
    return ""
