"""The queue of one client's events, and of its log lines about failures.

Laws:
- paho's callbacks only add to this queue. With long work inside a callback, paho would miss the
  keepalive and the broker would end the link.
- Log lines are written when they are taken from the queue, so that no callback waits for the log.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass

from fedclip_edge import log
from fedclip_edge.errors import RefusedError
from fedclip_edge.transport.base import Connected, Disconnected, Event, Received
from fedclip_edge.transport.outbox import Limits


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
    """One client's events. `limits` are those of the last `Connected` taken from the queue."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.refusal = ""  # the reason for a permanent refusal
        self.complaint = ""  # the reason why the last attempt to connect failed
        self._queue: queue.SimpleQueue[Event | _Up | _Note | _RefusedForGood] = queue.SimpleQueue()
        self._noted: set[_Note] = set()  # log lines queued since the link was last up
        self._first_answer = threading.Event()

    def put(self, event: Received | Disconnected) -> None:
        self._queue.put(event)

    def link_up(self, limits: Limits) -> None:
        """Queue `Connected` and clear the reasons why earlier attempts failed."""
        self.complaint = ""
        self._noted.clear()
        self._first_answer.set()
        self._queue.put(_Up(limits))

    def note(self, event: str, reason: str, topic: str | None = None) -> None:
        """Queue a line for the log; the same line only once until the link is up again."""
        said = _Note(event, reason, topic)
        if said not in self._noted:
            self._noted.add(said)
            self._queue.put(said)

    def complain(self, reason: str) -> None:
        """Record and log the reason why there is no link at the moment."""
        self.complaint = reason
        self.note("broker_not_reached", reason)

    def refuse(self, reason: str) -> None:
        """Queue a permanent refusal: `next_event` raises RefusedError when it takes it out."""
        self.refusal = reason
        self._queue.put(_RefusedForGood(reason))
        self._first_answer.set()

    def await_first_answer(self, timeout_s: float) -> bool:
        """True if the link came up, or was refused permanently, within `timeout_s` seconds."""
        return self._first_answer.wait(timeout_s)

    def next_event(self, timeout_s: float) -> Event | None:
        """The next event, as `Transport.next_event` defines it; writes log lines on the way."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                event = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            if isinstance(event, _RefusedForGood):
                raise RefusedError(event.reason)
            if isinstance(event, _Up):
                self.limits = event.limits
                return Connected()
            if not isinstance(event, _Note):
                return event
            log.event(event.event, topic=event.topic, reason=event.reason)
