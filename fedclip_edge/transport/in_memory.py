"""A broker and its clients in one process: the in-memory counterpart of mqtt.py.

Laws:
- A published message is delivered at once and in order, on the caller's thread. So a caller that
  sets the clock and chooses the next reader controls the whole order of events.
- A broken link is restored only by `come_back`.
- A message takes two hops, `accept` and `hand`. A simulation of a bad network overrides only these
  two methods.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fedclip_edge.protocol.topics import matches
from fedclip_edge.transport.base import Connected, Disconnected, Event, Received, Traffic, Will
from fedclip_edge.transport.outbox import Limits


class InMemoryBroker:
    """A broker in this process, with retained messages and wills."""

    def __init__(self) -> None:
        self.limits = Limits()
        self._clients: dict[str, InMemoryTransport] = {}
        self._retained: dict[str, bytes] = {}

    def client(self, client_id: str, topics: Iterable[str], will: Will) -> InMemoryTransport:
        """Connect a new client; an older client with the same id is cut first (`cut`)."""
        if client_id in self._clients:
            self.cut(client_id)
        client = InMemoryTransport(self, client_id, tuple(topics), will)
        self._connect(client)
        return client

    def come_back(self, client: InMemoryTransport) -> None:
        """Restore a client's link; any client now connected with its id is cut first."""
        if client.client_id in self._clients:
            self.cut(client.client_id)
        self._connect(client)

    def cut(self, client_id: str) -> None:
        """Break a client's link and publish its will; raises KeyError if it is not connected."""
        client = self._clients.pop(client_id)
        client.inbox.append(Disconnected("cut"))
        self.deliver(client.will.topic, client.will.payload, retain=True)

    def die(self, *, forgets: bool) -> None:
        """Restart the broker: every link breaks and no will is published.

        With `forgets` the retained messages are lost as well.
        """
        clients, self._clients = self._clients, {}
        for client in clients.values():
            client.inbox.append(Disconnected("the broker is gone"))
        if forgets:
            self._retained.clear()

    def retained(self, topic: str) -> bytes:
        """The message retained on a topic; empty if there is none."""
        return self._retained.get(topic, b"")

    def is_here(self, client: InMemoryTransport) -> bool:
        """True if this client object, and not another one with its id, is connected."""
        return self._clients.get(client.client_id) is client

    def leave(self, client_id: str) -> None:
        """Disconnect a client cleanly: its will is not published."""
        self._clients.pop(client_id, None)

    def deliver(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Hand a message to every client that subscribes to its topic, and retain it if told to."""
        if retain and payload:
            self._retained[topic] = payload
        elif retain:  # an empty one deletes the old (MQTT 3.1.1, section 3.3.1.3)
            self._retained.pop(topic, None)
        for client in list(self._clients.values()):
            if client.subscribes(topic):
                self.hand(client, Received(topic, payload))

    def accept(
        self, client: InMemoryTransport, topic: str, payload: bytes, *, retain: bool
    ) -> None:
        """Carry a message from a client to the broker."""
        self.deliver(topic, payload, retain=retain)

    def hand(self, client: InMemoryTransport, message: Received) -> None:
        """Carry a message from the broker to a client."""
        client.inbox.append(message)

    def _connect(self, client: InMemoryTransport) -> None:
        self._clients[client.client_id] = client
        client.inbox.append(Connected())
        self.repeat(client, client.topics)

    def repeat(self, client: InMemoryTransport, patterns: Iterable[str]) -> None:
        """Hand the messages retained on these topics to this client alone."""
        filters = tuple(patterns)
        for topic, payload in list(self._retained.items()):
            if any(matches(pattern, topic) for pattern in filters):
                self.hand(client, Received(topic, payload))


@dataclass(eq=False)
class InMemoryTransport:
    """A Transport to an InMemoryBroker; the counterpart of PahoTransport."""

    broker: InMemoryBroker
    client_id: str
    topics: tuple[str, ...]
    will: Will

    def __post_init__(self) -> None:
        self.inbox: deque[Event] = deque()
        self.on_its_way = 0  # messages that have not reached the broker yet

    def subscribes(self, topic: str) -> bool:
        return any(matches(pattern, topic) for pattern in self.topics)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.broker.limits.check("this process", topic, len(payload))
        if self.broker.is_here(self):
            self.broker.accept(self, topic, payload, retain=retain)

    def publish_parts(self, topic: str, name: str, parts: Iterator[bytes], part_bytes: int) -> None:
        for part in parts:
            self.publish(topic, part)

    def is_sending(self, topic: str, name: str) -> bool:
        return False

    def packet_bytes(self) -> int | None:
        return self.broker.limits.packet_bytes

    def backlog(self) -> int:
        return self.on_its_way

    def next_event(self, timeout_s: float) -> Event | None:
        return self.inbox.popleft() if self.inbox else None

    def resubscribe(self) -> None:
        if self.broker.is_here(self):
            self.broker.repeat(self, self.topics)

    def expect(self, devices: int) -> None:
        """Do nothing: only `come_back` restores a link here."""

    def set_topics(self, topics: Iterable[str], *, anew: bool = False) -> None:
        before, self.topics = self.topics, tuple(topics)
        if self.broker.is_here(self) and anew:
            self.inbox.clear()
            self.broker.come_back(self)
        elif self.broker.is_here(self):
            self.broker.repeat(self, [topic for topic in self.topics if topic not in before])

    def traffic(self) -> Traffic | None:
        return None

    def close(self) -> None:
        self.broker.leave(self.client_id)
