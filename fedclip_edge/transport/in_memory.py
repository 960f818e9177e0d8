"""A broker and its clients in one process: the in-memory twin of mqtt.py.

Law: what is published is delivered at once and in order, on the caller's thread; so whoever moves
the clock and picks who reads next decides everything that happens. A link that is gone comes back
when it is told to. `accept` and `hand` are the two hops of a message, and all that a worse network
has to replace.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from fedclip_edge.protocol.topics import matches
from fedclip_edge.transport.base import Connected, Disconnected, Event, Received, Traffic, Will
from fedclip_edge.transport.outbox import Limits


class InMemoryBroker:
    """A broker in this process, retained messages and wills included."""

    def __init__(self) -> None:
        self.limits = Limits()
        self._clients: dict[str, InMemoryTransport] = {}
        self._retained: dict[str, bytes] = {}

    def client(self, client_id: str, topics: Iterable[str], will: Will) -> InMemoryTransport:
        """A connected client; one of the same id is disconnected, its will published."""
        if client_id in self._clients:
            self.cut(client_id)
        client = InMemoryTransport(self, client_id, tuple(topics), will)
        self._connect(client)
        return client

    def come_back(self, client: InMemoryTransport) -> None:
        """A client whose link was gone has it again; one that took its id meanwhile is disconnected."""
        if client.client_id in self._clients:
            self.cut(client.client_id)
        self._connect(client)

    def cut(self, client_id: str) -> None:
        """The client's link is gone without a good-bye."""
        client = self._clients.pop(client_id)
        client.inbox.append(Disconnected("cut"))
        self.deliver(client.will.topic, client.will.payload, retain=True)

    def die(self, *, forgets: bool) -> None:
        """The broker is gone and there again: no link is left and no will said, nor, where it
        `forgets`, anything retained.
        """
        clients, self._clients = self._clients, {}
        for client in clients.values():
            client.inbox.append(Disconnected("the broker is gone"))
        if forgets:
            self._retained.clear()

    def retained(self, topic: str) -> bytes:
        """The message retained on a topic; empty where there is none."""
        return self._retained.get(topic, b"")

    def is_here(self, client: InMemoryTransport) -> bool:
        """True where this very client is connected."""
        return self._clients.get(client.client_id) is client

    def leave(self, client_id: str) -> None:
        """The client said good-bye."""
        self._clients.pop(client_id, None)

    def deliver(self, topic: str, payload: bytes, *, retain: bool) -> None:
        if retain and payload:
            self._retained[topic] = payload
        elif retain:  # MQTT 3.1.1, 3.3.1.3: an empty one is not kept, and ends what was
            self._retained.pop(topic, None)
        for client in list(self._clients.values()):
            if client.subscribes(topic):
                self.hand(client, Received(topic, payload))

    def accept(
        self, client: InMemoryTransport, topic: str, payload: bytes, *, retain: bool
    ) -> None:
        """A message on its way from a client to the broker."""
        self.deliver(topic, payload, retain=retain)

    def hand(self, client: InMemoryTransport, message: Received) -> None:
        """A message on its way from the broker to a client."""
        client.inbox.append(message)

    def _connect(self, client: InMemoryTransport) -> None:
        self._clients[client.client_id] = client
        client.inbox.append(Connected())
        self.repeat(client)

    def repeat(self, client: InMemoryTransport) -> None:
        """Hand this client alone the messages that are retained on its topics."""
        for topic, payload in list(self._retained.items()):
            if client.subscribes(topic):
                self.hand(client, Received(topic, payload))


@dataclass(eq=False)
class InMemoryTransport:
    """The in-memory twin of PahoTransport."""

    broker: InMemoryBroker
    client_id: str
    topics: tuple[str, ...]
    will: Will

    def __post_init__(self) -> None:
        self.inbox: deque[Event] = deque()
        self.on_its_way = 0  # messages that the broker has not taken in yet

    def subscribes(self, topic: str) -> bool:
        return any(matches(pattern, topic) for pattern in self.topics)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.broker.limits.check("this process", topic, payload)
        if self.broker.is_here(self):
            self.broker.accept(self, topic, payload, retain=retain)

    def packet_bytes(self) -> int | None:
        return self.broker.limits.packet_bytes

    def backlog(self) -> int:
        return self.on_its_way

    def next_event(self, timeout_s: float) -> Event | None:
        return self.inbox.popleft() if self.inbox else None

    def resubscribe(self) -> None:
        if self.broker.is_here(self):
            self.broker.repeat(self)

    def expect(self, devices: int) -> None:
        """Nothing here comes back by itself."""

    def traffic(self) -> Traffic | None:
        return None

    def close(self) -> None:
        self.broker.leave(self.client_id)
