"""An in-memory broker on a network that loses, repeats, reorders, delays and alters messages.

What arrives at a process waits in the real transport's inbox (inbox.py), with its limits.

A message takes two hops, each with its own fate. If the connection ends while a message is on its
way, the message is lost, unless it is a late one: paho may deliver on a new connection what was
meant for the old one.
"""

from __future__ import annotations

import functools
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import device_laws
from broken_law import BrokenLawError
from crashing import Killed

from fedclip_edge.coordinator.coordinator import MUTED_S
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport import inbox
from fedclip_edge.transport.base import Connected, Disconnected, Event, Flooding, Received, Will
from fedclip_edge.transport.in_memory import InMemoryBroker, InMemoryTransport
from fedclip_edge.transport.outbox import Limits

if TYPE_CHECKING:
    from made_up_network import World
    from simulated_processes import SimulatedProcess

FLEET = "lab"
_KEPT, _OFFER, _CHUNK = b'{"kind":"kept"', b'{"kind":"offer"', b"\xfc\x1e"
_HELLO, _WANT = b'{"kind":"hello"', b'{"kind":"want"'
_COORDINATOR_STATE = Topics(FLEET).coordinator_state
_HEAD_BYTES = 24  # see chunks.py; the last four bytes are the checksum


@dataclass(frozen=True)
class Weather:
    """Probabilities of faults on a hop, and its latency in seconds."""

    lost: float = 0.0
    repeated: float = 0.0
    altered: float = 0.0
    late: float = 0.0
    lost_chunks: float = 0.0  # chunks of a model on its way to devices
    # Chunks with other bytes and a valid checksum, of models and updates.
    forged_chunks: float = 0.0
    in_order: bool = True
    latency_s: float = 0.02


def worse(luck: random.Random) -> Weather:
    """The faults of a run: often there is only one kind."""
    return Weather(
        lost=luck.choice((0.0, 0.0, 0.02, 0.1)),
        repeated=luck.choice((0.0, 0.0, 0.05, 0.3)),
        altered=luck.choice((0.0, 0.0, 0.02, 0.1)),
        late=luck.choice((0.0, 0.0, 0.02, 0.1)),
        forged_chunks=luck.choice((0.0, 0.0, 0.0, 0.2)),
        in_order=luck.random() < 0.5,
        latency_s=luck.choice((0.01, 0.1, 0.5)),
    )


def storm(luck: random.Random) -> Weather:
    """Settings for a few seconds in which few messages arrive, and in no order."""
    return Weather(
        lost=luck.choice((0.1, 0.5, 0.9)),
        repeated=0.3,
        altered=luck.choice((0.0, 0.3)),
        late=0.2,
        in_order=False,
        latency_s=luck.choice((0.1, 1.0)),
    )


def bad_downloads(calm: Weather, luck: random.Random) -> Weather:
    """Settings for a few seconds in which models arrive with missing and changed chunks."""
    return replace(
        calm,
        lost_chunks=luck.choice((0.3, 0.6)),
        forged_chunks=luck.choice((0.0, 0.3, 0.6)),
    )


@dataclass(eq=False)
class BoundedLink(InMemoryTransport):
    """A link whose messages wait in a bounded inbox; `clock` gives the simulated time."""

    clock: Callable[[], float]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._is_empty = True
        self.handled: Counter[str] = Counter()  # messages that were taken out, by topic
        self.ignores: dict[str, float] = {}  # device that floods -> time until it is ignored
        is_coordinator = self.will.topic == _COORDINATOR_STATE
        self._bounded = inbox.Inbox(
            Limits(), Topics(FLEET).owner if is_coordinator else None, self.clock
        )

    def next_event(self, timeout_s: float) -> Event | None:
        # The usual cases, without the inbox's lock: nothing waits, or one message.
        if self._is_empty and not self.inbox:
            return None
        if self._is_empty and len(self.inbox) == 1 and isinstance(self.inbox[0], Received):
            self.handled[self.inbox[0].topic] += 1
            return self.inbox.popleft()
        while self.inbox:
            event = self.inbox.popleft()
            if isinstance(event, Received):
                self._bounded.put(event)
            elif isinstance(event, Disconnected):
                self._bounded.link_down(event)
            elif isinstance(event, Connected):
                self._bounded.link_up(Limits())
        taken = self._bounded.next_event(timeout_s)
        self._is_empty = taken is None
        if isinstance(taken, Received):
            self.handled[taken.topic] += 1
        elif isinstance(taken, Flooding):
            self.ignores.setdefault(taken.sender, self.clock() + MUTED_S)
        return taken


class Network(InMemoryBroker):
    """A broker whose connections are controlled by the world."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._links: dict[InMemoryTransport, int] = {}  # number of connections so far
        self._clear_at: dict[tuple[InMemoryTransport, str], float] = {}

    def client(self, client_id: str, topics: Iterable[str], will: Will) -> InMemoryTransport:
        if client_id in self._clients:
            self.cut(client_id)
        client = BoundedLink(self, client_id, tuple(topics), will, lambda: self._world.now)
        self._connect(client)
        return client

    def flood(self, client: InMemoryTransport, topic: str, payload: bytes, count: int) -> None:
        """Deliver a message of a client `count` times at once, to each reader."""
        self._world.note(f"{client.client_id} > {topic} {count} x {_kind(payload)}")
        for other in list(self._clients.values()):
            simulated = self._world.owner(other)
            if simulated is None or not other.subscribes(topic):
                continue
            assert isinstance(other, BoundedLink)
            until = other.ignores.get(Topics(FLEET).owner(topic), 0.0)
            if self._world.now < until:
                raise BrokenLawError("flood", f"{simulated.label} listens to a device that floods")
            other.ignores.pop(Topics(FLEET).owner(topic), None)
            before = other.handled[topic]
            other.inbox.extend([Received(topic, payload)] * count)
            self._world.poke(simulated)
            if other.handled[topic] - before > inbox.SHARE.items:
                raise BrokenLawError("flood", f"{simulated.label} handles a whole flood")

    def accept(
        self, client: InMemoryTransport, topic: str, payload: bytes, *, retain: bool
    ) -> None:
        world, simulated = self._world, self._world.owner(client)
        assert simulated is not None
        simulated.fuse.point()
        if payload.startswith((_HELLO, _WANT)):
            simulated.last_said[_kind(payload)] = topic, payload
        self._hear(simulated, topic, payload)
        send = functools.partial(self._send, client, topic, payload, retain)
        is_upload = not simulated.serves and payload.startswith(_CHUNK)
        upload_s = world.upload_s[simulated.name] if is_upload else 0.0
        # Sent when a stopped process goes on, or after a slow link, if it is still alive.
        delay_s = max(simulated.busy_until - world.now, upload_s)
        if delay_s > 0:
            life = simulated.lives

            def later() -> None:
                if simulated.link is client and simulated.lives == life and self.is_here(client):
                    send()

            world.at(delay_s, later)
        else:
            send()
        if simulated.dies_of_answers and payload.startswith(_KEPT):
            raise Killed

    def _hear(self, simulated: SimulatedProcess, topic: str, payload: bytes) -> None:
        """Check the laws on a message at the moment it is sent."""
        if simulated.serves and self._world.laws is not None:
            self._world.laws.said(topic, payload, simulated.view)
        elif payload.startswith(_OFFER):
            assert simulated.connection is not None
            device_laws.offers(
                simulated.memory,
                payload,
                simulated.view,
                writing=simulated.connection.in_transaction,
            )

    def hand(self, client: InMemoryTransport, message: Received) -> None:
        simulated = self._world.owner(client)
        is_deaf = simulated is not None and simulated.deaf_until > self._world.now
        if is_deaf and message.topic == _COORDINATOR_STATE:
            return
        for delay_s, payload, link in self._fates(client, "<", message.payload):
            receive = functools.partial(self._receive, client, link, message.topic, payload)
            self._world.at(delay_s, receive)

    def cut(self, client_id: str) -> None:
        client = self._clients[client_id]
        super().cut(client_id)
        self._world.link_lost(client)

    def die(self, *, forgets: bool) -> None:
        clients = list(self._clients.values())
        super().die(forgets=forgets)
        for client in clients:
            self._world.link_lost(client)

    def miss(self, client: InMemoryTransport) -> None:
        """Let the broker notice that a client is gone."""
        if self.is_here(client):
            self.cut(client.client_id)

    def _connect(self, client: InMemoryTransport) -> None:
        self._links[client] = self._links.get(client, 0) + 1
        client.on_its_way = 0
        super()._connect(client)

    def _send(self, client: InMemoryTransport, topic: str, payload: bytes, retain: bool) -> None:
        for delay_s, data, link in self._fates(client, ">", payload):
            client.on_its_way += 1
            arrive = functools.partial(self._arrive, client, link, topic, data, retain)
            self._world.at(delay_s, arrive)

    def _arrive(
        self,
        client: InMemoryTransport,
        link: int,
        topic: str,
        payload: bytes,
        retain: bool,
    ) -> None:
        client.on_its_way = max(0, client.on_its_way - 1)
        if self.is_here(client) and link in (0, self._links[client]):
            self._world.note(
                f"{client.client_id} > {topic} {zlib.crc32(payload):08x} {_kind(payload)}"
            )
            self.deliver(topic, payload, retain=retain)

    def _receive(self, client: InMemoryTransport, link: int, topic: str, payload: bytes) -> None:
        simulated = self._world.owner(client)
        if simulated is not None and self.is_here(client) and link in (0, self._links[client]):
            self._world.note(
                f"{client.client_id} < {topic} {zlib.crc32(payload):08x} {_kind(payload)}"
            )
            client.inbox.append(Received(topic, payload))
            self._world.poke(simulated)

    def _fates(
        self, client: InMemoryTransport, way: str, payload: bytes
    ) -> list[tuple[float, bytes, int]]:
        """Delay, content and connection of each copy of a message (connection 0: any)."""
        world, simulated = self._world, self._world.owner(client)
        weather, luck, link = world.weather, world.luck, self._links[client]
        is_chunk = (weather.lost_chunks or weather.forged_chunks) and payload.startswith(_CHUNK)
        if simulated is not None and simulated.muted_until > world.now:
            return []
        if world.now >= world.quiet_at:
            return [(self._in_order(client, way, weather.latency_s), payload, link)]
        if luck.random() < weather.lost:
            return []
        if is_chunk and simulated is not None and not simulated.serves:
            if way == "<" and luck.random() < weather.lost_chunks:
                return []
            if luck.random() < weather.forged_chunks:
                payload = _forged(payload, luck)
        fates = []
        for _ in range(2 if luck.random() < weather.repeated else 1):
            if luck.random() < weather.late:
                fates.append((luck.uniform(0, 20), payload, 0))
                continue
            data = _altered(payload, luck) if luck.random() < weather.altered else payload
            delay_s = weather.latency_s * luck.uniform(0.5, 2)
            if weather.in_order:
                delay_s = self._in_order(client, way, delay_s)
            fates.append((delay_s, data, link))
        return fates

    def _in_order(self, client: InMemoryTransport, way: str, delay_s: float) -> float:
        """The delay, increased so that the message does not overtake earlier ones."""
        now = self._world.now
        at = max(now + delay_s, self._clear_at.get((client, way), 0.0))
        self._clear_at[client, way] = at
        return at - now


def _altered(payload: bytes, luck: random.Random) -> bytes:
    """The payload with a flipped bit, or cut off."""
    if luck.random() < 0.3 or not payload:
        return payload[: luck.randrange(len(payload) + 1)]
    data = bytearray(payload)
    data[luck.randrange(len(data))] ^= 1 << luck.randrange(8)
    return bytes(data)


def _forged(chunk: bytes, luck: random.Random) -> bytes:
    """A chunk with other bytes and a valid CRC-32; only the hash of the whole shows it."""
    if len(chunk) <= _HEAD_BYTES:
        return chunk
    part = bytearray(chunk[_HEAD_BYTES:])
    part[luck.randrange(len(part))] ^= 1 << luck.randrange(8)
    return chunk[: _HEAD_BYTES - 4] + zlib.crc32(part).to_bytes(4, "little") + part


def _kind(payload: bytes) -> str:
    """The kind of message, for readers of the trace."""
    return (
        payload[9:20].decode(errors="replace").partition('"')[0] if payload[:1] == b"{" else "chunk"
    )
