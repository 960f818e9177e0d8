"""The transport over an MQTT broker, with paho.

in_memory.py is its in-memory counterpart.

Laws, in addition to those of base.py:
- paho's callbacks only enqueue (inbox.py).
- Messages have QoS 1, sessions are clean, and paho holds at most a window of messages (outbox.py).
- The link uses MQTT 5 if the broker supports it (mqtt_version.py), only for the information that it
  adds: the largest packet, the largest number of unacknowledged messages, and the reason for a
  refusal. This module also works without it.
- A client that reads more slowly than messages of QoS 0 arrive loses more than these messages:
  mosquitto also drops acknowledgements and messages of QoS 1 to it, for good (mosquitto issue
  3542). Only a new link mends that. `set_topics` can make one, and a link that is stuck (outbox.py)
  is replaced.
- The link is restored after a random wait, so that a fleet does not reconnect all at once. Only
  `connect`, the first connection, gives up after a timeout.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import ConfigError, FedclipError, LinkError, RefusedError
from fedclip_edge.transport import broker_limits, port_probe, reason_codes, tls
from fedclip_edge.transport.base import (
    Disconnected,
    Event,
    Received,
    Traffic,
    Will,
    reconnect_wait_s,
)
from fedclip_edge.transport.broker_limits import LimitWatch
from fedclip_edge.transport.examination import EXAMINE_S, Examination
from fedclip_edge.transport.inbox import Inbox
from fedclip_edge.transport.mqtt_version import PATIENCE_S, Dialect
from fedclip_edge.transport.outbox import STUCK_S, Limits, Outbox
from fedclip_edge.transport.paho_client import Client
from fedclip_edge.transport.subscriptions import Subscriptions
from fedclip_edge.transport.traffic import Meter

# Without TLS the only cause to look for is a port that speaks TLS. A broker that was away is not
# asked for it.
_PLAIN_FAILURES = 2
_CLOSE_S = 5.0
_RENEWED = "this client ended it, to make a new one without the messages that waited"
_STUCK = f"the broker acknowledged nothing for {STUCK_S:g} s; this client makes a new link"
# Larger messages are dropped. The broker is not told the limit: mosquitto 2.0.11 sends no more
# messages of QoS 1 to a client after 20 that exceed it.
_TAKES_BYTES = broker_limits.NEEDED_BYTES


class PahoTransport:
    """A Transport over MQTT and TCP, with TLS if the address has a `ca`.

    A client that speaks with many others names them with `party_of`, which gives the other client
    by the topic of a message. Then they take turns, and none can crowd out the others (inbox.py,
    outbox.py). The constructor raises ConfigError if the address names certificates that cannot be
    used.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        topics: Iterable[str],
        will: Will | None,
        party_of: Callable[[str], str] | None = None,
    ) -> None:
        self._address = address
        self._where = f"{address.host}:{address.port}"
        self._client_id = client_id
        self._dialect = Dialect((address.host, address.port))
        self._answered = False  # the broker answered on the current connection
        self._unsupported = False  # the broker does not support the version used
        self._limits = Limits(address.max_packet_bytes)
        self._inbox = Inbox(self._limits, party_of)
        self._outbox = Outbox(self._hand_over, party_of)
        self._meter = Meter()
        self._closed_because = ""  # a likely reason why connections are closed without an answer
        self._renewing = ""  # the reason why this client ended the link to make a new one
        self._failures = 0  # failed attempts since the link was last up
        self._watch = LimitWatch(self._where)
        self._is_back = False  # the link was lost, and its return is to be reported
        self._devices = 1
        self._examination = Examination(address, self._inbox, lambda: self._closed_because)
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=True)
        self._subscriptions = Subscriptions(self._client, topics)
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

    def connect(self, timeout_s: float, meanwhile: Callable[[], None] | None = None) -> None:
        """Make the first connection, with attempts for `timeout_s` seconds.

        `meanwhile` is called between attempts, several times a second.

        Raises LinkError if no broker answers or the connection fails for now, RefusedError if the
        broker refuses this client permanently, and ConfigError if the host is not a valid name or
        does not show a certificate of the address's `ca` for it.
        """
        try:
            self._connect(timeout_s, meanwhile)
        except FedclipError:
            self._client.release()
            raise

    def _connect(self, timeout_s: float, meanwhile: Callable[[], None] | None) -> None:
        deadline, here = time.monotonic() + timeout_s, self._address
        self._client.connect_async(here.host, here.port, here.keepalive_s)
        while True:
            try:
                self._client.speak(self._dialect.version)
                self._client.reconnect()
                break
            except UnicodeError:
                raise ConfigError(
                    f"host {here.host!r} is not a valid host name; correct it under [broker]"
                ) from None
            except OSError as error:
                why = tls.explain(here, error)
                if isinstance(why, ConfigError):
                    raise why from None
                if time.monotonic() >= deadline:
                    cause = port_probe.mismatch(here, EXAMINE_S)
                    raise (LinkError(cause) if cause else why) from None
            if meanwhile is not None:
                meanwhile()
            time.sleep(min(0.2, timeout_s))
        self._outbox.start()
        self._client.loop_start()
        answered = self._inbox.await_first_answer(max(1.0, deadline - time.monotonic()))
        if self._inbox.refusal:
            self.close()
            raise RefusedError(self._inbox.refusal)
        if not answered:
            self.close()
            silent = (
                f"{self._where} accepts connections but does not answer MQTT; correct host and "
                "port under [broker]"
            )
            # First, because a complaint of closed connections would name a wrong cause.
            raise LinkError(port_probe.mismatch(here, EXAMINE_S) or self._inbox.complaint or silent)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._inbox.limits.check(self._where, topic, len(payload))
        self._outbox.put(topic, payload, retain=retain)

    def publish_parts(self, topic: str, name: str, parts: Iterator[bytes], part_bytes: int) -> None:
        self._inbox.limits.check(self._where, topic, part_bytes)
        self._outbox.put_parts(topic, name, parts)

    def is_sending(self, topic: str, name: str) -> bool:
        return self._outbox.holds(topic, name)

    def packet_bytes(self) -> int | None:
        return self._inbox.limits.packet_bytes

    @property
    def gives_reasons(self) -> bool:
        """True if the broker says whether it took a message: the link uses MQTT 5."""
        return self._dialect.version == 5

    def backlog(self) -> int:
        return self._outbox.backlog()

    def next_event(self, timeout_s: float) -> Event | None:
        if self._outbox.is_stuck():
            self._renew(_STUCK)
        return self._inbox.next_event(timeout_s)

    def resubscribe(self) -> None:
        if self._outbox.is_up:  # otherwise the next connection subscribes
            self._subscriptions.ask()

    def set_topics(self, topics: Iterable[str], *, anew: bool = False) -> None:
        self._subscriptions.change(topics, tell=self._outbox.is_up and not anew)
        if anew:
            self._renew(_RENEWED)

    def _renew(self, why: str) -> None:
        if self._outbox.is_up and not self._renewing:
            self._renewing = why
            self._client.end_link()

    def expect(self, devices: int) -> None:
        self._devices = devices

    def traffic(self) -> Traffic | None:
        return self._meter.read()

    def close(self) -> None:
        self._outbox.drain(_CLOSE_S)
        self._client.disconnect()
        self._client.loop_stop()
        self._client.release()

    def _hand_over(self, topic: str, payload: bytes, retain: bool) -> None:
        self._client.publish(topic, payload, 1, retain)

    def _on_connect(
        self, client: mqtt.Client, _data: Any, _flags: Any, reason: ReasonCode, said: Any
    ) -> None:
        if str(reason) == "Unsupported protocol version":
            self._unsupported = True
            return
        self._answered = True
        self._watch.answered()
        self._closed_because = ""
        self._dialect.answered()
        if str(reason) in reason_codes.FOR_GOOD:
            self._inbox.refuse(
                f"the broker at {self._where} refused {self._client_id!r}: {reason}; "
                f"{reason_codes.FOR_GOOD[str(reason)]}"
            )
            return
        if reason.is_failure:
            refusal = f"the broker at {self._where} refused the connection for now"
            self._inbox.complain(f"{refusal}: {reason_codes.advised(str(reason), self._address)}")
            return
        if self._dialect.version == 5:  # 3.1.1 announces no limits: keep the last known ones
            packet_bytes = getattr(said, "MaximumPacketSize", None)
            waiting = getattr(said, "ReceiveMaximum", Limits.receive_maximum)
            self._limits = Limits(packet_bytes, waiting).within(self._address.max_packet_bytes)
        # paho keeps the messages that the last link did not deliver, and would send all of them
        # again at once, regardless of the window. They are dropped here, as the broker drops the
        # state of a clean session.
        client.drop_out_messages()
        if not self._subscriptions.ask_anew():
            self._begin()

    def _on_subscribe(
        self, _client: mqtt.Client, _data: Any, number: int, answers: list[ReasonCode], _said: Any
    ) -> None:
        refusals = [str(answer) if answer.is_failure else "" for answer in answers]
        denied, is_last = self._subscriptions.answered(number, refusals)
        if not denied:
            if is_last and not self._outbox.is_up:  # otherwise this is the answer to a later one
                self._begin()
            return
        topic, reason = next(iter(denied.items()))
        complaint = (
            f"the broker at {self._where} refused the subscription of {self._client_id!r} to "
            f"{topic}: {reason_codes.advised(reason, self._address)}"
        )
        if reason in reason_codes.NEVER_SUBSCRIBED:
            self._inbox.refuse(complaint)
            return
        self._inbox.complain(complaint)
        self._client.end_link()  # useless without subscriptions: reconnect later and try again

    def _begin(self) -> None:
        """Open the link for use. The subscriptions are made, so retained messages will arrive."""
        self._outbox.link_up(self._limits)
        self._failures = 0
        if self._is_back:
            self._is_back = False
            self._inbox.note("link_restored", f"connected to {self._where} again")
        self._inbox.link_up(self._limits)

    def _on_disconnect(
        self, _client: mqtt.Client, _data: Any, _flags: Any, reason: ReasonCode, _said: Any
    ) -> None:
        on_way = self._outbox.link_down()
        if on_way is not None:
            self._link_lost(str(reason), [sent.packet_bytes for sent in on_way])
        at_once = False
        if self._unsupported:
            at_once = self._dialect.unsupported()
        elif not self._answered:
            at_once = self._dialect.closed()
            if not self._client.is_ended:
                self._closed_because = self._watch.closed_without_answer()
        at_once |= self._renewing != ""
        self._answered = self._unsupported = False
        self._renewing = ""
        self._client.speak(self._dialect.version)
        if at_once:
            self._client.reconnect_delay_set(0, 0)
        else:
            self._come_back(failed=on_way is None)

    def _link_lost(self, reason: str, on_way_bytes: list[int]) -> None:
        why = self._renewing
        if why in ("", _STUCK):
            limit = self._watch.link_ended(reason, on_way_bytes)
            if limit:
                self._inbox.note("broker_limit", limit)
            why = (
                ""
                if self._watch.is_reported
                else why or reason_codes.of_lost_link(reason, self._address)
            )
        self._is_back = why != ""
        self._inbox.link_down(Disconnected(why))

    def _on_connect_fail(self, _client: mqtt.Client, _data: Any) -> None:
        self._come_back(failed=True)

    def _come_back(self, *, failed: bool) -> None:
        """Tell paho how long to wait; after a failed attempt, examine the reason."""
        draw = random.random()  # noqa: S311
        wait_s = reconnect_wait_s(self._failures, self._devices, draw, self._watch.ends)
        self._client.reconnect_delay_set(wait_s, wait_s)  # type: ignore[arg-type]  # floats work
        if failed:
            self._failures += 1
            if self._address.ca is None and self._failures <= _PLAIN_FAILURES:
                if self._closed_because:
                    self._inbox.complain(self._closed_because)
            else:
                self._examination.start()

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        if len(message.payload) <= _TAKES_BYTES:
            self._inbox.put(Received(message.topic, bytes(message.payload)))

    def _on_publish(
        self, _client: mqtt.Client, _data: Any, _mid: int, reason: ReasonCode, _said: Any
    ) -> None:
        sent, why = self._outbox.acknowledged(), str(reason)
        size_bytes = 0 if sent is None else sent.packet_bytes
        if not reason.is_failure:
            if self._watch.taken(size_bytes):
                self._inbox.note("broker_limit_over", f"a message of {size_bytes} bytes was taken")
        elif why == broker_limits.TOO_LARGE:
            limit = self._watch.too_large(size_bytes)
            if limit:
                self._inbox.note("broker_limit", limit)
        else:
            topic = "" if sent is None else sent.topic
            self._inbox.note("message_not_taken", reason_codes.advised(why, self._address), topic)

    def _on_socket_open(self, _client: mqtt.Client, _data: Any, opened: Any) -> None:
        # There are many small messages: with Nagle's algorithm each could wait up to 40 ms.
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._meter.opened(opened)
        if self._dialect.is_a_guess:
            patience = threading.Timer(PATIENCE_S, self._give_up, (opened,))
            patience.daemon = True
            patience.start()

    def _give_up(self, opened: Any) -> None:
        """End a connection that the broker has not answered yet."""
        if self._client.socket() is opened and not self._answered and not self._unsupported:
            self._client.end_link()

    def _on_socket_close(self, _client: mqtt.Client, _data: Any, closing: Any) -> None:
        self._meter.closing()
