"""Messages over an MQTT broker; the only module that knows paho. memory.py is its in-memory twin.

Beside what transport.py says:

- paho's callbacks only enqueue: work inside a callback misses the keepalive, and the broker then
  delivers the same message a second time.
- QoS 1, a clean session, and at most a window of messages handed to paho (outbox.py).
- The link comes back after a while drawn at random, so that a fleet does not come back at once;
  only the first connection may fail.
"""

from __future__ import annotations

import queue
import random
import ssl
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from fedclip_edge import log
from fedclip_edge.config import BrokerAddress
from fedclip_edge.errors import ConfigError, FedclipError, LinkError, RefusedError
from fedclip_edge.messaging import tls
from fedclip_edge.messaging.outbox import Outbox
from fedclip_edge.messaging.traffic import Meter
from fedclip_edge.messaging.transport import (
    Connected,
    Disconnected,
    Event,
    Received,
    Traffic,
    Will,
    reconnect_wait_s,
)

_EXAMINE_S = 3.0
_THROW_OUT_S = 5.0
_CLOSE_S = 5.0
_REFUSED_FOR_GOOD = ("Bad user name or password", "Not authorized", "Client identifier not valid")


@dataclass(frozen=True)
class _RefusedForGood:
    """In the queue behind what came before it."""

    reason: str


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
        self._outbox = Outbox(self._hand_over)
        self._meter = Meter()
        self._refusal = ""
        self._failures = 0  # attempts since the link was last up
        self._devices = 1
        self._examining = threading.Lock()
        self._complaint = ""  # why the last attempt failed
        self._first_answer = threading.Event()
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
        self._outbox.start()
        self._client.loop_start()
        self._first_answer.wait(max(1.0, deadline - time.monotonic()))
        if self._refusal:
            self.close()
            raise RefusedError(self._refusal)
        if not self._first_answer.is_set():
            self.close()
            raise LinkError(f"{where} accepts connections but does not answer MQTT")

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._outbox.put(topic, payload, retain=retain)

    def backlog(self) -> int:
        return self._outbox.backlog()

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
        return self._meter.read()

    def close(self) -> None:
        self._outbox.drain(_CLOSE_S)
        self._client.disconnect()
        self._client.loop_stop()

    def _hand_over(self, topic: str, payload: bytes, retain: bool) -> None:
        self._client.publish(topic, payload, 1, retain)

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
        self._outbox.link_up()
        self._failures, self._complaint = 0, ""
        self._first_answer.set()
        self._events.put(Connected())

    def _on_disconnect(
        self, _client: mqtt.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        stood = self._outbox.link_down()
        if stood:
            self._events.put(Disconnected(str(reason)))
        self._come_back(failed=not stood)

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
        self._outbox.acknowledged()

    def _on_socket_open(self, _client: mqtt.Client, _data: Any, opened: Any) -> None:
        self._meter.opened(opened)

    def _on_socket_close(self, _client: mqtt.Client, _data: Any, closing: Any) -> None:
        self._meter.closing()


def throw_out(address: BrokerAddress, client_id: str) -> None:
    """Has the broker end the connection of that client id, by coming under it and leaving again.

    Raises LinkError or RefusedError as `connect` does.
    """
    link = PahoTransport(address, client_id, (), None)
    link.connect(_THROW_OUT_S)
    link.close()
