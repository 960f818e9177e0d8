"""Events of one client's link in order, for its owner to fetch; and complaints for the log.

paho's callbacks only enqueue here: work inside a callback misses the keepalive, and the broker then
delivers the same message a second time. Log lines are written on the way out, so that no callback
waits for a reader of the log.
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
    """The link is up; what the broker takes on it."""

    limits: Limits


@dataclass(frozen=True)
class _Note:
    """For the log."""

    event: str
    reason: str
    topic: str | None = None


@dataclass(frozen=True)
class _RefusedForGood:
    """Behind what came before it."""

    reason: str


class Inbox:
    """One client's events. `limits` are those of the last `Connected` that was taken out."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.refusal = ""  # why this client is never let in
        self.complaint = ""  # why the last attempt failed
        self._queue: queue.SimpleQueue[Event | _Up | _Note | _RefusedForGood] = queue.SimpleQueue()
        self._noted: set[_Note] = set()  # since the link was last up
        self._first_answer = threading.Event()

    def put(self, event: Received | Disconnected) -> None:
        self._queue.put(event)

    def link_up(self, limits: Limits) -> None:
        """`Connected`; complaints of earlier attempts are over."""
        self.complaint = ""
        self._noted.clear()
        self._first_answer.set()
        self._queue.put(_Up(limits))

    def note(self, event: str, reason: str, topic: str | None = None) -> None:
        """A line for the log, once while a link lasts."""
        said = _Note(event, reason, topic)
        if said not in self._noted:
            self._noted.add(said)
            self._queue.put(said)

    def complain(self, reason: str) -> None:
        """Why there is no link, for now."""
        self.complaint = reason
        self.note("broker_not_reached", reason)

    def refuse(self, reason: str) -> None:
        """`next_event` raises RefusedError once it comes to this."""
        self.refusal = reason
        self._queue.put(_RefusedForGood(reason))
        self._first_answer.set()

    def await_first_answer(self, timeout_s: float) -> bool:
        """True where the link was up, or was refused for good, within `timeout_s`."""
        return self._first_answer.wait(timeout_s)

    def next_event(self, timeout_s: float) -> Event | None:
        """As a Transport gives it."""
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
