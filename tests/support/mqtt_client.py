"""Clients of a real broker, and a proxy between them and the broker."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from system import DEADLINE_S

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import LinkError
from fedclip_edge.transport.base import (
    Connected,
    Received,
    Transport,
    Will,
)
from fedclip_edge.transport.mqtt import PahoTransport

E = TypeVar("E")


class Proxy:
    """A TCP relay in front of a broker that counts bytes, stalls and cuts connections."""

    def __init__(self, target: BrokerAddress) -> None:
        self._target = (target.host, target.port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._answers = threading.Event()
        self._answers.set()
        self.accepting = True
        self.up_bytes = 0
        self.down_bytes = 0
        self.address = BrokerAddress(port=self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if not self.accepting:
                client.close()
                continue
            try:
                server = socket.create_connection(self._target)
            except OSError:  # the broker is down
                client.close()
                continue
            self._pairs.append((client, server))
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._down, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                with self._lock:
                    self.up_bytes += len(data)
                server.sendall(data)
        _shut(client, server)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                self._answers.wait()
                with self._lock:
                    self.down_bytes += len(data)
                client.sendall(data)
        _shut(client, server)

    def stall(self) -> None:
        """Hold back the broker's answers from now on."""
        self._answers.clear()

    def flow(self) -> None:
        self._answers.set()

    def cut(self) -> None:
        """Close all connections without a DISCONNECT."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _shut(*pair)
        self._answers.set()

    def close(self) -> None:
        self._server.close()
        self.cut()


class Gate(Proxy):
    """A relay that closes connections whose CONNECT says MQTT 5, as RabbitMQ 3.10 does.

    It passes them on if `knows_5` is set. It closes any connection while `deaths` is above zero.
    """

    def __init__(self, target: BrokerAddress) -> None:
        self.knows_5 = False
        self.deaths = 0
        self.knocks: list[int] = []  # the MQTT version of each attempt
        super().__init__(target)

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        begin = client.recv(256, socket.MSG_PEEK)
        version = begin[begin.find(b"\0\x04MQTT") + 6]
        self.knocks.append(version)
        if self.deaths or (version == 5 and not self.knows_5):
            self.deaths = max(0, self.deaths - 1)
            client.shutdown(socket.SHUT_RDWR)
            server.close()
            return
        super()._up(client, server)


def _shut(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


def connected(
    address: BrokerAddress, name: str, topics: Iterable[str] = (), will: Will | None = None
) -> PahoTransport:
    made = PahoTransport(address, name, topics, will or Will(f"gone/{name}", b"gone"))
    made.connect(DEADLINE_S)
    return made


def fill(address: BrokerAddress) -> list[PahoTransport]:
    """Clients that leave the broker no room for another one."""
    made: list[PahoTransport] = []
    while True:
        link = PahoTransport(address, f"client-{time.monotonic_ns()}", [], None)
        try:
            link.connect(4.0)
        except LinkError:
            return made
        made.append(link)
        assert len(made) < 5  # mosquitto 2.0.11 lets one more in than it is told


def next_of(transport: Transport, kind: type[E], where: Callable[[E], bool] = lambda _: True) -> E:
    """The next event of type `kind`; other events before it are dropped."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        event = transport.next_event(1.0)
        if isinstance(event, kind) and where(event):
            return event
    raise AssertionError(f"no {kind.__name__} within {DEADLINE_S} s")


def subscribed(transport: Transport) -> None:
    """Wait until a message to `ready` comes back, which shows that the subscriptions work."""
    next_of(transport, Connected)
    transport.publish("ready", b"")
    next_of(transport, Received, lambda event: event.topic == "ready")


def login(address: BrokerAddress, user: str, password: str) -> BrokerAddress:
    return BrokerAddress(port=address.port, username=user, password=password)


def until_end(transport: Transport, topic: str) -> set[tuple[str, bytes]]:
    found: set[tuple[str, bytes]] = set()
    while True:
        event = next_of(transport, Received)
        if (event.topic, event.payload) == (topic, b"end"):
            return found
        found.add((event.topic, event.payload))
