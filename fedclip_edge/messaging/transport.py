"""Messages over MQTT; the only module that knows paho. memory.py is its in-memory twin.

What the rest of the package relies on, and both keep:

- `next_event` is the one way in. paho's callbacks only enqueue: work inside a callback misses the
  keepalive, and the broker then delivers the same message a second time.
- QoS 1, a clean session, and at most WINDOW messages handed to paho at a time: after a reconnect
  paho sends everything it holds at once, whatever its own limit says. A thread of our own does
  the handing over, because paho calls `on_publish` under the lock that its `publish` takes.
- What was not delivered when the link went away is forgotten, not queued: every message of the
  protocol is sent again by whoever still needs its effect.
- The link comes back by itself, after a while drawn at random, so that a fleet does not come back
  at once; only the first connection may fail. Who is refused for good learns it from `next_event`.
"""

from __future__ import annotations

import functools
import queue
import random
import secrets
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from fedclip_edge import log
from fedclip_edge.config import BrokerAddress
from fedclip_edge.errors import ConfigError, FedclipError, LinkError, RefusedError
from fedclip_edge.messaging import tls

WINDOW = 8
# A broker that is back is found again within ten seconds.
_RECONNECT_MAX_S = 8.0
# What a broker on two cores lets in with a handshake each, and without a queue of its own.
_RECONNECTS_PER_S = 50
_EXAMINE_S = 3.0
_THROW_OUT_S = 5.0
_CLOSE_S = 5.0
_ALL_WAITING = 2**20  # permits that let whatever waits for a dead link pass, to be forgotten
# struct tcp_info of Linux 4.1 and later: bytes acknowledged by the peer, bytes received.
_TCP_INFO_BYTES, _TCP_COUNTERS, _TCP_COUNTERS_AT = 192, struct.Struct("=QQ"), 120
_REFUSED_FOR_GOOD = ("Bad user name or password", "Not authorized", "Client identifier not valid")


@dataclass(frozen=True)
class Connected:
    """The link is up and the subscriptions stand."""


@dataclass(frozen=True)
class Disconnected:
    """The link went away; it comes back by itself."""

    reason: str


@dataclass(frozen=True)
class Received:
    """A message came."""

    topic: str
    payload: bytes


Event = Connected | Disconnected | Received


@dataclass(frozen=True)
class _RefusedForGood:
    """In the queue behind what came before it."""

    reason: str


@dataclass(frozen=True)
class Will:
    """What the broker publishes, retained, when this client vanishes."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Traffic:
    """Bytes on this client's sockets since it started, MQTT framing included, TCP's own not."""

    up_bytes: int
    down_bytes: int


class Transport(Protocol):
    """One client's way to send and to be told."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Sends, or forgets the message if the link is or goes down. Never blocks."""

    def backlog(self) -> int:
        """Messages published on this link that the broker has not acknowledged yet."""

    def next_event(self, timeout_s: float) -> Event | None:
        """The next event, or None after `timeout_s`.

        Raises RefusedError where the broker will never let this client in.
        """

    def expect(self, devices: int) -> None:
        """How many may come back at the same time as this client, should the broker go away."""

    def traffic(self) -> Traffic | None:
        """What went over the wire; None where it cannot be measured."""

    def close(self) -> None:
        """Says good-bye, so that the will is not published; sends what is queued first."""


class _Link:
    """One connection's window; what waits for an older one is forgotten."""

    def __init__(self) -> None:
        self.window = threading.Semaphore(WINDOW)
        self.published = 0  # written by the publishing thread alone
        self.acknowledged = 0  # written by paho's thread alone


@dataclass(frozen=True)
class _Outgoing:
    topic: str
    payload: bytes
    retain: bool
    link: _Link


def device_client(fleet: str, device: str, boot: str) -> str:
    """A device's client id: only it and its coordinator know `boot`.

    A broker ends the older of two connections with one client id, whoever they are of.
    """
    return f"{fleet}.{device}.{boot}"


def coordinator_client() -> str:
    """A client id that nobody else can know."""
    return f"coordinator-{secrets.token_hex(8)}"


def reconnect_wait_s(failures: int, devices: int, draw: float) -> float:
    """How long to stay away after so many failed attempts; `draw` is uniform in [0, 1).

    Drawn from at least a second, and from as long as the broker needs for all of a large fleet.
    """
    grows = min(2.0**failures, _RECONNECT_MAX_S) - 1
    return grows + draw * max(1.0, devices / _RECONNECTS_PER_S)


class PahoTransport:
    """MQTT 3.1.1, which every broker speaks; over TLS where the address has an authority.

    Raises ConfigError where the address names certificates that cannot be used.
    """

    def __init__(
        self, address: BrokerAddress, client_id: str, topics: Iterable[str], will: Will | None
    ) -> None:
        self._address = address
        self._client_id = client_id
        self._topics = [(topic, 1) for topic in topics]
        self._events: queue.SimpleQueue[Event | _RefusedForGood] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[_Outgoing | None] = queue.SimpleQueue()
        self._link: _Link | None = None
        self._refusal = ""
        self._failures = 0  # attempts since the link was last up
        self._devices = 1
        self._examining = threading.Lock()
        self._complaint = ""  # why the last attempt failed
        self._first_answer = threading.Event()
        self._socket: socket.socket | None = None
        self._closed_traffic = Traffic(0, 0)
        self._sender = threading.Thread(target=self._send, name="mqtt-sender", daemon=True)
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=True
        )
        if will is not None:
            self._client.will_set(will.topic, will.payload, qos=1, retain=True)
        if address.username:
            self._client.username_pw_set(address.username, address.password)
        settings = tls.context(address)
        if settings is not None:
            self._client.tls_set_context(settings)
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish
        self._client.on_socket_open = self._on_socket_open
        self._client.on_socket_close = self._on_socket_close

    def connect(self, timeout_s: float) -> None:
        """Makes the first connection, trying for `timeout_s`.

        Raises LinkError where no broker answers, RefusedError where it refuses this client for
        good, ConfigError where it is not the broker that the address means.
        """
        deadline = time.monotonic() + timeout_s
        where = f"{self._address.host}:{self._address.port}"
        while True:
            try:
                self._client.connect(
                    self._address.host, self._address.port, self._address.keepalive_s
                )
                break
            except UnicodeError:
                raise ConfigError(
                    f"host {self._address.host!r} is no host name; correct it under [broker]"
                ) from None
            except ssl.SSLError as error:
                why = tls.explain(self._address, error)
                if isinstance(why, ConfigError) or time.monotonic() >= deadline:
                    raise why from None
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise LinkError(
                        f"no MQTT broker answers at {where} ({error.strerror or error}); "
                        "start one, or correct host and port under [broker]"
                    ) from None
            time.sleep(min(0.2, timeout_s))
        self._sender.start()
        self._client.loop_start()
        self._first_answer.wait(max(1.0, deadline - time.monotonic()))
        if self._refusal:
            self.close()
            raise RefusedError(self._refusal)
        if not self._first_answer.is_set():
            self.close()
            raise LinkError(f"{where} accepts connections but does not answer MQTT")

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        link = self._link
        if link is not None:
            link.published += 1
            self._outbox.put(_Outgoing(topic, payload, retain, link))

    def backlog(self) -> int:
        link = self._link
        return 0 if link is None else link.published - link.acknowledged

    def next_event(self, timeout_s: float) -> Event | None:
        try:
            event = self._events.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None
        if isinstance(event, _RefusedForGood):
            raise RefusedError(event.reason)
        return event

    def expect(self, devices: int) -> None:
        self._devices = devices

    def traffic(self) -> Traffic | None:
        live = _count(self._socket)
        if live is None:
            return None
        return Traffic(
            self._closed_traffic.up_bytes + live.up_bytes,
            self._closed_traffic.down_bytes + live.down_bytes,
        )

    def close(self) -> None:
        link, deadline = self._link, time.monotonic() + _CLOSE_S
        self._outbox.put(None)
        if self._sender.is_alive():
            self._sender.join(_CLOSE_S)
        if link is not None:  # wait until all that was sent is acknowledged
            for _ in range(WINDOW):
                link.window.acquire(timeout=max(0.0, deadline - time.monotonic()))
        self._client.disconnect()
        self._client.loop_stop()

    def _send(self) -> None:
        while (message := self._outbox.get()) is not None:
            message.link.window.acquire()
            if message.link is self._link:
                self._client.publish(message.topic, message.payload, 1, message.retain)

    def _on_connect(
        self, client: mqtt.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        if reason.is_failure:
            if str(reason) in _REFUSED_FOR_GOOD:
                where = f"{self._address.host}:{self._address.port}"
                self._refuse(
                    f"the broker at {where} refused {self._client_id!r}: {reason}; "
                    "correct username and password under [broker]"
                )
            return
        # paho keeps what the last link did not deliver and would send it all again, whatever the
        # window; the session is clean, so it is forgotten on this side as well.
        client.drop_out_messages()
        if self._topics:
            client.subscribe(self._topics)
        else:
            self._begin()

    def _on_subscribe(
        self, _client: mqtt.Client, _data: Any, _mid: int, _reasons: Any, _properties: Any
    ) -> None:
        self._begin()

    def _begin(self) -> None:
        """Subscriptions stand, so that retained messages follow: the link may be used."""
        self._link = _Link()
        self._failures, self._complaint = 0, ""
        self._first_answer.set()
        self._events.put(Connected())

    def _on_disconnect(
        self, _client: mqtt.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.window.release(_ALL_WAITING)
            self._events.put(Disconnected(str(reason)))
        self._come_back(failed=link is None)

    def _on_connect_fail(self, _client: mqtt.Client, _data: Any) -> None:
        self._come_back(failed=True)

    def _come_back(self, *, failed: bool) -> None:
        """Tells paho how long to wait; where an attempt failed, looks into why."""
        wait_s = reconnect_wait_s(self._failures, self._devices, random.random())  # noqa: S311
        self._client.reconnect_delay_set(wait_s, wait_s)  # type: ignore[arg-type]  # floats serve
        if failed:
            self._failures += 1
            if self._address.ca is not None and self._examining.acquire(blocking=False):
                threading.Thread(target=self._examine, name="mqtt-examine", daemon=True).start()

    def _examine(self) -> None:
        """In a thread of its own: a handshake takes longer than a callback may."""
        try:
            tls.examine(self._address, _EXAMINE_S)
        except RefusedError as error:
            self._refuse(str(error))
        except FedclipError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.event("broker_not_reached", reason=self._complaint)
        finally:
            self._examining.release()

    def _refuse(self, reason: str) -> None:
        self._refusal = reason
        self._events.put(_RefusedForGood(reason))
        self._first_answer.set()

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        self._events.put(Received(message.topic, bytes(message.payload)))

    def _on_publish(
        self, _client: mqtt.Client, _data: Any, _mid: int, _reason: ReasonCode, _properties: Any
    ) -> None:
        link = self._link
        if link is not None:
            link.acknowledged += 1
            link.window.release()

    def _on_socket_open(self, _client: mqtt.Client, _data: Any, opened: Any) -> None:
        self._socket = opened

    def _on_socket_close(self, _client: mqtt.Client, _data: Any, closing: Any) -> None:
        total = self.traffic()
        if total is not None:
            self._closed_traffic = total
        self._socket = None


def _count(connection: socket.socket | None) -> Traffic | None:
    """The kernel's own count of one connection; None off Linux."""
    if connection is None:
        return Traffic(0, 0)
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return Traffic(*_TCP_COUNTERS.unpack_from(info, _TCP_COUNTERS_AT))
    except (OSError, AttributeError, struct.error):
        return None


def throw_out(address: BrokerAddress, client_id: str) -> None:
    """Has the broker end the connection of that client id, by coming under it and leaving again.

    Raises LinkError or RefusedError as `connect` does.
    """
    link = PahoTransport(address, client_id, (), None)
    link.connect(_THROW_OUT_S)
    link.close()


@functools.lru_cache(maxsize=4096)
def matches(pattern: str, topic: str) -> bool:
    """Whether a subscription to `pattern` gets `topic` (MQTT 3.1.1, 4.7)."""
    return bool(mqtt.topic_matches_sub(pattern, topic))
