"""The link over which a device publishes its answers, to a broker that need not be the fleet's.

It has a thread of its own, so neither a broker that is away nor a slow one delays the device.

Laws:
- An answer is published at least once, in order, unless the link was away for more than `keep`
  answers, or when the process ended. The oldest are dropped then, and their number is logged.
- No fault of this broker ends the device or its part in a run. A fault is logged once.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from fedclip_edge import log
from fedclip_edge.agent.home_assistant import (
    OFFLINE,
    ONLINE,
    announcement,
    availability_topic,
    discovery_topic,
)
from fedclip_edge.config.answers import AnswersBroker
from fedclip_edge.errors import ConfigError, FedclipError, RefusedError
from fedclip_edge.transport.base import Connected, Disconnected, Event, Transport, Will
from fedclip_edge.transport.mqtt import PahoTransport

_AT_ONCE = 32  # messages on their way to the broker
_POLL_S = 0.1
_TRY_S = 5.0  # one attempt to connect
_AGAIN_S = 5.0  # between two attempts
_REFUSED_AGAIN_S = 60.0  # the same, while the broker refuses the login
_CLOSE_S = 8.0  # the longest wait for the last answers when the device stops


@dataclass(frozen=True)
class _Message:
    topic: str
    payload: bytes


@dataclass(eq=False)
class AnswerQueue:
    """The messages that the broker does not have yet, at most `keep`; safe to use from threads."""

    keep: int
    dropped: int = 0
    _waiting: deque[_Message] = field(default_factory=deque)
    _on_way: int = 0  # of the first ones
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, topic: str, payload: bytes) -> None:
        """Add a message, and drop the oldest one if there are too many."""
        with self._lock:
            self._waiting.append(_Message(topic, payload))
            if len(self._waiting) > self.keep:
                self._waiting.popleft()
                self._on_way = max(0, self._on_way - 1)
                self.dropped += 1

    def take(self) -> list[_Message]:
        """Return the next messages to publish; none while there are some on their way."""
        with self._lock:
            if self._on_way:
                return []
            self._on_way = min(_AT_ONCE, len(self._waiting))
            return [self._waiting[place] for place in range(self._on_way)]

    def acknowledge(self) -> None:
        """Forget the messages that were on their way: the broker has them."""
        with self._lock:
            for _ in range(self._on_way):
                self._waiting.popleft()
            self._on_way = 0

    def take_back(self) -> None:
        """Publish the messages again that were on their way: the link broke."""
        with self._lock:
            self._on_way = 0

    def take_dropped(self) -> int:
        """The number of dropped messages since the last call."""
        with self._lock:
            count, self.dropped = self.dropped, 0
            return count

    def __len__(self) -> int:
        with self._lock:
            return len(self._waiting)


class AnswerLink:
    """The link of one device process to the broker of [answers.broker].

    The constructor raises ConfigError if the settings name certificates that cannot be used.
    """

    def __init__(self, broker: AnswersBroker, device: str) -> None:
        self._broker = broker
        self._device = device
        self._where = f"{broker.host}:{broker.port}"
        self._queue = AnswerQueue(broker.keep)
        self._stops = threading.Event()
        self._is_serving = False
        self._fault = ""  # the last fault that was logged
        self._first: PahoTransport | None = self._make_link()
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)

    def start(self) -> None:
        """Connect, and publish what is put from now on; in the background."""
        self._thread.start()

    def put(self, topic: str, payload: bytes) -> None:
        """Publish a retained message as soon as the link is up. Never blocks."""
        self._queue.put(topic, payload)

    def close(self) -> None:
        """Publish what waits, tell that the device goes offline, and end the link."""
        self._stops.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S if self._is_serving else 0.0)
        left = len(self._queue) + self._queue.take_dropped()
        if left:
            log.event("answers_dropped", broker=self._where, count=left)

    def _make_link(self) -> PahoTransport:
        client = f"fedclip-edge.{self._device}.{secrets.token_hex(8)}"
        will = Will(availability_topic(self._broker, self._device), OFFLINE)
        try:
            return PahoTransport(self._broker, client, (), will)
        except ConfigError as error:
            raise ConfigError(of_answers(str(error))) from None

    def _run(self) -> None:
        while True:
            link, self._first = self._first or self._make_link(), None
            again_s = _AGAIN_S
            try:
                link.connect(_TRY_S)  # after an error it has closed itself
                self._is_serving = True
                try:
                    self._serve(link)
                finally:
                    self._queue.take_back()
                    link.close()
                    self._is_serving = False
            except RefusedError as error:
                self._report(str(error))
                again_s = _REFUSED_AGAIN_S
            except FedclipError as error:
                self._report(str(error))
            if self._stops.wait(again_s):
                return

    def _serve(self, link: Transport) -> None:
        """Publish until the device stops; raises RefusedError if the broker refuses it."""
        publisher = Publication(link, self._queue, self._hello)
        while True:
            stops = self._stops.is_set()
            event = link.next_event(0 if stops else _POLL_S)
            if isinstance(event, Connected):
                self._fault = ""
                log.event("answers_connected", broker=self._where, waiting=len(self._queue))
            if isinstance(event, Disconnected) and event.reason:
                log.event("answers_link_lost", broker=self._where, reason=event.reason)
            publisher.turn(event)
            lost = self._queue.take_dropped() if publisher.is_up else 0
            if lost:
                log.event("answers_dropped", broker=self._where, count=lost)
            if stops and event is None:
                publisher.say_goodbye(availability_topic(self._broker, self._device))
                return

    def _hello(self, link: Transport) -> None:
        """Publish what a broker must know that has just accepted the link."""
        link.publish(availability_topic(self._broker, self._device), ONLINE, retain=True)
        if self._broker.home_assistant:
            said = json.dumps(announcement(self._broker, self._device)).encode()
            link.publish(discovery_topic(self._broker, self._device), said, retain=True)

    def _report(self, fault: str) -> None:
        if fault != self._fault:
            self._fault = fault
            reason = of_answers(fault)
            log.event("answers_broker_not_reached", broker=self._where, reason=reason)


def of_answers(fault: str) -> str:
    """A text of the transport, which is about the fleet's broker, for the broker of answers."""
    return fault if "[answers.broker]" in fault else fault.replace("[broker]", "[answers.broker]")


@dataclass(eq=False)
class Publication:
    """The publishing of a queue over one link, which may break and come back.

    `hello` publishes what comes first on each connection.
    """

    link: Transport
    queue: AnswerQueue
    hello: Callable[[Transport], None]
    is_up: bool = False
    _was_empty: bool = False  # nothing was on its way at the end of the last turn

    def turn(self, event: Event | None) -> None:
        """Handle the link's next event, or publish more if there is none.

        Messages count as acknowledged if nothing is on its way in two turns without an event: when
        the link breaks, the link's count is 0 shortly before its event arrives.
        """
        if isinstance(event, Connected):
            self.queue.take_back()
            self.is_up, self._was_empty = True, False
            self.hello(self.link)
        elif isinstance(event, Disconnected):
            self.is_up, self._was_empty = False, False
            self.queue.take_back()
        elif event is None and self.is_up:
            is_empty = self.link.backlog() == 0
            if is_empty and self._was_empty:
                self.queue.acknowledge()
            self._was_empty = is_empty
            for message in self.queue.take():
                self._was_empty = False
                with contextlib.suppress(ConfigError):  # larger than this broker's limit
                    self.link.publish(message.topic, message.payload, retain=True)

    def say_goodbye(self, topic: str) -> None:
        """Publish all that waits and that the device is offline; closing the link sends it."""
        if self.is_up:
            self.queue.acknowledge()  # the link has them
            while messages := self.queue.take():
                for message in messages:
                    with contextlib.suppress(ConfigError):
                        self.link.publish(message.topic, message.payload, retain=True)
                self.queue.acknowledge()
            self.link.publish(topic, OFFLINE, retain=True)
