"""Messages over a real broker, and over the in-memory transport with the same contract."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import paho.mqtt.client as mqtt
import pytest
from brokers import StartMosquitto
from hypothesis import given
from hypothesis import strategies as st
from mqtt_client import (
    Proxy,
    connected,
    login,
    next_of,
    subscribed,
    until_end,
)
from paho.mqtt.enums import CallbackAPIVersion
from system import DEADLINE_S

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import LinkError, RefusedError
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport import outbox
from fedclip_edge.transport.base import (
    Connected,
    Disconnected,
    Received,
    Transport,
    Will,
    coordinator_client,
    device_client,
    reconnect_wait_s,
)
from fedclip_edge.transport.in_memory import InMemoryBroker
from fedclip_edge.transport.mqtt import PahoTransport
from fedclip_edge.transport.outbox import WINDOW


class Place(Protocol):
    """A broker for clients."""

    def client(self, name: str, topics: Iterable[str] = (), will: Will | None = None) -> Transport:
        """A connected client whose `Connected` event is still in its queue."""

    def cut(self, name: str) -> None:
        """Cut the client's link without a DISCONNECT, and keep it away."""


@dataclass
class MemoryPlace:
    broker: InMemoryBroker = field(default_factory=InMemoryBroker)

    def client(self, name: str, topics: Iterable[str] = (), will: Will | None = None) -> Transport:
        return self.broker.client(name, topics, will or Will(f"gone/{name}", b"gone"))

    def cut(self, name: str) -> None:
        self.broker.cut(name)


@dataclass
class MosquittoPlace:
    address: BrokerAddress
    clients: list[PahoTransport] = field(default_factory=list)
    proxies: dict[str, Proxy] = field(default_factory=dict)

    def client(
        self, name: str, topics: Iterable[str] = (), will: Will | None = None
    ) -> PahoTransport:
        proxy = self.proxies[name] = Proxy(self.address)
        made = connected(proxy.address, name, topics, will)
        self.clients.append(made)
        return made

    def cut(self, name: str) -> None:
        self.proxies[name].accepting = False
        self.proxies[name].cut()

    def close(self) -> None:
        for made in self.clients:
            made.close()
        for proxy in self.proxies.values():
            proxy.close()


@pytest.fixture
def place(start_mosquitto: StartMosquitto) -> Iterator[MosquittoPlace]:
    """A broker for this test only, without retained messages of other tests."""
    broker = start_mosquitto()
    made = MosquittoPlace(broker.address)
    yield made
    made.close()
    broker.stop()


@pytest.fixture(params=["memory", "mosquitto"])
def anywhere(request: pytest.FixtureRequest) -> Place:
    if request.param == "memory":
        return MemoryPlace()
    found: MosquittoPlace = request.getfixturevalue("place")
    return found


def on_bulk(event: Received) -> bool:
    return event.topic == "bulk"


def publish_at_qos_0(broker: BrokerAddress, topic: str, payload: bytes, count: int) -> None:
    """Publish a message many times, and return once the broker has read all of them."""
    speaker = mqtt.Client(CallbackAPIVersion.VERSION2)
    speaker.connect(broker.host, broker.port)
    speaker.loop_start()
    for _ in range(count):
        speaker.publish(topic, payload, 0)
    speaker.publish("read", b"", 1).wait_for_publish(DEADLINE_S)
    speaker.disconnect()
    speaker.loop_stop()


def messages(transport: Transport, until: str) -> list[tuple[str, bytes]]:
    """All messages before one on the topic `until`."""
    found: list[tuple[str, bytes]] = []
    while True:
        event = next_of(transport, Received)
        if event.topic == until:
            return found
        if event.topic != "ready":  # another client's
            found.append((event.topic, event.payload))


# The contract.


def test_the_first_event_is_connected(anywhere: Place) -> None:
    assert anywhere.client("a").next_event(DEADLINE_S) == Connected()


def test_where_nothing_came_there_is_no_event(anywhere: Place) -> None:
    client = anywhere.client("a", ["here"])
    next_of(client, Connected)
    assert client.next_event(0) is None
    assert client.next_event(-1) is None


def test_messages_come_in_order_on_the_topics_subscribed_to(anywhere: Place) -> None:
    listener = anywhere.client("a", ["ready", "x/+/up", "y"])
    subscribed(listener)
    speaker = anywhere.client("b")
    sent = [("x/1/up", b"1"), ("x/2/up", b"\0\xff"), ("y", b""), ("x/1/up", b"1")]
    for topic, payload in [*sent, ("z", b"no"), ("x/1/2/up", b"no"), ("x", b"no"), ("y/z", b"no")]:
        speaker.publish(topic, payload)
    speaker.publish("x/end/up", b"")
    assert messages(listener, until="x/end/up") == sent


def test_a_client_hears_itself(anywhere: Place) -> None:
    client = anywhere.client("a", ["ready"])
    subscribed(client)


def test_what_is_retained_comes_to_who_subscribes_later(anywhere: Place) -> None:
    speaker = anywhere.client("a", ["ready", "kept/+"])
    subscribed(speaker)
    speaker.publish("kept/1", b"old", retain=True)
    speaker.publish("kept/1", b"new", retain=True)
    speaker.publish("kept/1", b"passing")
    speaker.publish("kept/2", b"cleared", retain=True)
    speaker.publish("kept/2", b"", retain=True)
    speaker.publish("other/1", b"not asked for", retain=True)
    speaker.publish("ready", b"")
    next_of(speaker, Received, lambda event: event.topic == "ready")
    late = anywhere.client("b", ["ready", "kept/+"])
    next_of(late, Connected)
    speaker.publish("kept/end", b"")
    assert messages(late, until="kept/end") == [("kept/1", b"new")]


def test_what_is_retained_is_said_again_to_who_asks(anywhere: Place) -> None:
    listener = anywhere.client("a", ["kept/#", "ready"])
    speaker = anywhere.client("b")
    speaker.publish("kept/1", b"news", retain=True)
    speaker.publish("ready", b"")
    assert messages(listener, "ready") == [("kept/1", b"news")]
    listener.resubscribe()
    again = next_of(listener, Received)
    assert (again.topic, again.payload) == ("kept/1", b"news")
    speaker.publish("ready", b"")
    assert messages(listener, "ready") == [], "the link must be the same"


def test_the_subscriptions_can_be_replaced(anywhere: Place) -> None:
    speaker = anywhere.client("b")
    next_of(speaker, Connected)
    listener = anywhere.client("a", ["ready", "x/+"])
    subscribed(listener)
    speaker.publish("y/1", b"retained", retain=True)
    speaker.publish("x/1", b"heard")
    speaker.publish("ready", b"")
    assert messages(listener, "ready") == [("x/1", b"heard")]
    many = [f"y/{number}" for number in range(250)]
    listener.set_topics(["ready", *many])
    event = next_of(listener, Received)
    assert (event.topic, event.payload) == ("y/1", b"retained")
    # The answer to this comes after those to the changes.
    listener.resubscribe()
    next_of(listener, Received, lambda event: event.topic == "y/1")
    for topic in ("x/1", "y/0", "y/249"):
        speaker.publish(topic, b"later")
    speaker.publish("ready", b"")
    assert [topic for topic, _ in messages(listener, "ready") if topic != "y/1"] == [
        "y/0",
        "y/249",
    ]


def test_replaced_subscriptions_hold_on_the_next_link(place: MosquittoPlace) -> None:
    listener = place.client("a", ["ready", "x"])
    subscribed(listener)
    listener.set_topics(["ready", "y"])
    place.proxies["a"].cut()
    next_of(listener, Disconnected)
    subscribed(listener)
    for topic in ("x", "y", "ready"):
        listener.publish(topic, b"later")
    assert messages(listener, "ready") == [("y", b"later")]


def test_with_new_subscriptions_the_link_can_be_made_anew(anywhere: Place) -> None:
    observer = anywhere.client("b", ["ready", "state/a"])
    subscribed(observer)
    listener = anywhere.client("a", ["ready", "x"], Will("state/a", b"gone"))
    subscribed(listener)
    listener.set_topics(["ready", "y"], anew=True)
    assert isinstance(listener.next_event(DEADLINE_S), Disconnected)
    assert next_of(observer, Received, lambda e: e.topic == "state/a").payload == b"gone"
    subscribed(listener)
    for topic in ("x", "y", "ready"):
        observer.publish(topic, b"later")
    assert messages(listener, "ready") == [("y", b"later")]


def test_a_link_that_is_made_anew_has_lost_no_acknowledgement(
    start_mosquitto: StartMosquitto,
) -> None:
    # While a client does not read, mosquitto drops every packet to it above the limit.
    broker = start_mosquitto(settings="allow_anonymous true\nmax_queued_messages 8")
    place = MosquittoPlace(broker.address)
    try:
        listener = place.client("a", ["ready", "x"])
        subscribed(listener)
        place.proxies["a"].stall()
        publish_at_qos_0(broker.address, "x", bytes(150_000), count=500)
        for _ in range(2 * WINDOW):
            listener.publish("elsewhere", b"")
        time.sleep(1.0)  # the broker gets the first WINDOW of them, and acknowledges none
        place.proxies["a"].flow()
        listener.set_topics(["ready", "y"], anew=True)
        next_of(listener, Disconnected)
        subscribed(listener)
        listener.publish("y", b"new")
        listener.publish("ready", b"")
        assert messages(listener, "ready") == [("y", b"new")]
        deadline = time.monotonic() + DEADLINE_S
        while listener.backlog():  # on the old link, some messages would never be acknowledged
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        place.close()
        broker.stop()


def test_a_client_that_vanishes_leaves_its_will(anywhere: Place) -> None:
    listener = anywhere.client("a", ["ready", "state/b"])
    subscribed(listener)
    vanishes = anywhere.client("b", ["ready"], Will("state/b", b"gone"))
    subscribed(vanishes)
    anywhere.cut("b")
    assert next_of(listener, Received, lambda e: e.topic == "state/b").payload == b"gone"
    next_of(vanishes, Disconnected)
    vanishes.publish("state/b", b"forgotten")  # no error, although the message is lost
    late = anywhere.client("c", ["ready", "state/b"])  # the will was retained
    assert next_of(late, Received, lambda e: e.topic == "state/b").payload == b"gone"


def test_a_client_that_says_good_bye_leaves_no_will(anywhere: Place) -> None:
    listener = anywhere.client("a", ["ready", "state/b", "end"])
    subscribed(listener)
    leaves = anywhere.client("b", ["ready"], Will("state/b", b"gone"))
    subscribed(leaves)
    leaves.publish("state/b", b"good-bye")
    leaves.close()
    leaves.publish("state/b", b"forgotten")
    anywhere.client("c").publish("end", b"")
    assert messages(listener, until="end") == [("state/b", b"good-bye")]


def test_a_client_may_come_back_under_its_name(anywhere: Place) -> None:
    for _ in range(2):
        client = anywhere.client("a", ["ready"])
        subscribed(client)
        client.close()


# Only with sockets.


def test_what_was_queued_is_sent_before_the_good_bye(place: MosquittoPlace) -> None:
    listener = place.client("a", ["ready", "bulk"])
    subscribed(listener)
    speaker = place.client("b")
    next_of(speaker, Connected)
    for number in range(100):
        speaker.publish("bulk", bytes([number]) * 10_000)
    speaker.close()
    for number in range(100):
        assert next_of(listener, Received, on_bulk).payload == bytes([number]) * 10_000


def test_bulk_arrives_whole_and_in_order_both_ways(place: MosquittoPlace) -> None:
    """More messages than all queues hold: the window must prevent an overrun."""
    count, size = 300, 120 * 1024
    left = place.client("left", ["ready", "to/left"])
    right = place.client("right", ["ready", "to/right"])
    for client in (left, right):
        subscribed(client)
    for number in range(count):
        for client, topic in ((left, "to/right"), (right, "to/left")):
            client.publish(topic, number.to_bytes(4, "big") + bytes(size - 4))
    for client in (left, right):
        for number in range(count):
            event = next_of(client, Received, lambda e: e.topic.startswith("to/"))
            assert event.payload[:4] == number.to_bytes(4, "big")
            assert len(event.payload) == size


def test_at_most_a_window_is_on_the_way(place: MosquittoPlace) -> None:
    listener = place.client("a", ["ready", "bulk"])
    subscribed(listener)
    speaker = place.client("b", ["ready"])
    next_of(speaker, Connected)  # nothing was published yet: the whole window is free
    place.proxies["b"].stall()
    for number in range(50):  # none of these calls waits for an acknowledgement
        speaker.publish("bulk", bytes([number]))
    for number in range(WINDOW):
        assert next_of(listener, Received, on_bulk).payload == bytes([number])
    assert listener.next_event(0.3) is None  # no more messages
    place.proxies["b"].flow()
    for number in range(WINDOW, 50):
        assert next_of(listener, Received, on_bulk).payload == bytes([number])


def test_a_link_without_acknowledgements_is_replaced(
    place: MosquittoPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "STUCK_S", 1.0)
    speaker = place.client("a", ["ready"])
    subscribed(speaker)
    assert speaker.next_event(1.2) is None  # nothing is on its way
    place.proxies["a"].stall()
    speaker.publish("elsewhere", b"")
    event = next_of(speaker, Disconnected)
    assert "acknowledged nothing" in event.reason
    place.proxies["a"].flow()
    subscribed(speaker)


def test_what_was_not_delivered_when_the_link_went_away_is_forgotten(place: MosquittoPlace) -> None:
    listener = place.client("a", ["ready", "bulk", "end"])
    subscribed(listener)
    speaker = place.client("b", ["ready"])
    next_of(speaker, Connected)
    proxy = place.proxies["b"]
    proxy.stall()
    for number in range(50):
        speaker.publish("bulk", bytes([number]))
    for number in range(WINDOW):
        assert next_of(listener, Received, on_bulk).payload == bytes([number])
    proxy.cut()
    next_of(speaker, Disconnected)
    speaker.publish("bulk", b"while away")
    subscribed(speaker)  # the link and its subscriptions came back without help
    speaker.publish("end", b"")
    # Messages in flight may arrive twice: QoS 1 means at least once.
    assert {payload for _, payload in messages(listener, until="end")} <= {
        bytes([number]) for number in range(WINDOW)
    }


def test_the_link_comes_back_after_the_broker_did(start_mosquitto: StartMosquitto) -> None:
    broker = start_mosquitto()
    client = connected(broker.address, "a", ["ready"])
    try:
        subscribed(client)
        for _ in range(2):
            broker.stop()
            next_of(client, Disconnected)
            client.publish("ready", b"forgotten")
            broker = start_mosquitto(broker.address.port)
            subscribed(client)
    finally:
        client.close()
        broker.stop()


def test_without_a_broker_there_is_no_link() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        port = nobody.getsockname()[1]
        client = PahoTransport(BrokerAddress(port=port), "a", [], Will("w", b""))
        began = time.monotonic()
        with pytest.raises(
            LinkError, match=rf"no MQTT broker answers at 127\.0\.0\.1:{port} \(Conn"
        ):
            client.connect(0.5)
        assert time.monotonic() - began > 0.4
        client.close()


def test_a_name_that_nobody_knows_is_no_link() -> None:
    client = PahoTransport(BrokerAddress("no-such-host.invalid"), "a", [], Will("w", b""))
    with pytest.raises(LinkError, match=r"no MQTT broker answers at no-such-host\.invalid:1883"):
        client.connect(0.1)


def test_a_port_that_does_not_speak_mqtt_is_no_link() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = BrokerAddress(port=silent.getsockname()[1])
        client = PahoTransport(address, "a", [], Will("w", b""))
        with pytest.raises(LinkError, match="accepts connections but does not answer MQTT"):
            client.connect(0.1)


def test_a_broker_that_comes_late_is_waited_for(start_mosquitto: StartMosquitto) -> None:
    broker = start_mosquitto()
    broker.stop()
    client = PahoTransport(broker.address, "a", ["ready"], Will("w", b""))
    late = threading.Timer(0.5, lambda: start_mosquitto(broker.address.port))
    late.start()
    client.connect(DEADLINE_S)
    subscribed(client)
    client.close()
    late.join()


@pytest.mark.parametrize(("user", "password"), [("cam-01", "wrong"), ("nobody", "x"), ("", "")])
def test_a_wrong_password_is_refused_for_good(
    guarded: BrokerAddress, user: str, password: str
) -> None:
    client = PahoTransport(login(guarded, user, password), "cam-01", [], Will("w", b""))
    with pytest.raises(RefusedError, match=r"refused 'cam-01': .*correct username and password"):
        client.connect(DEADLINE_S)


def test_a_real_broker_keeps_everybody_to_the_access_list(guarded: BrokerAddress) -> None:
    lab = Topics("lab")

    def member(name: str, topics: Iterable[str]) -> PahoTransport:
        gone = Will(lab.coordinator_state if name == "coordinator" else lab.state(name), b"gone")
        made = connected(login(guarded, name, name), name, topics, gone)
        next_of(made, Connected)
        return made

    # Each client subscribes to everything; the broker decides.
    coordinator = member("coordinator", ["fedclip/#"])
    one, two = (member(name, ["fedclip/#"]) for name in ("cam-01", "cam-02"))
    try:
        everything = [lab.coordinator_state, lab.manifest, lab.model]
        for name in ("cam-01", "cam-02"):
            everything += [lab.state(name), lab.up(name), lab.down(name)]
        for client, name in ((one, "cam-01"), (two, "cam-02"), (coordinator, "coordinator")):
            for topic in everything:
                client.publish(topic, f"{name} says".encode())
        coordinator.publish(lab.model, b"end")
        own = {
            (lab.state("cam-01"), b"cam-01 says"),
            (lab.up("cam-01"), b"cam-01 says"),
            (lab.state("cam-02"), b"cam-02 says"),
            (lab.up("cam-02"), b"cam-02 says"),
        }
        broadcast = {
            (topic, b"coordinator says")
            for topic in (lab.coordinator_state, lab.manifest, lab.model)
        }
        for client, allowed in (
            (one, broadcast | {(lab.down("cam-01"), b"coordinator says")}),
            (two, broadcast | {(lab.down("cam-02"), b"coordinator says")}),
        ):
            assert until_end(client, lab.model) == allowed
        seen: set[tuple[str, bytes]] = set()
        for client, name in ((one, "cam-01"), (two, "cam-02")):
            client.publish(lab.up(name), b"end")
            seen |= until_end(coordinator, lab.up(name))
        assert seen == own | broadcast | {(lab.model, b"end")}
    finally:
        for client in (one, two, coordinator):
            client.close()


def test_a_real_broker_retains_nothing_for_a_made_up_fleet(guarded: BrokerAddress) -> None:
    device = connected(login(guarded, "cam-01", "cam-01"), "cam-01")
    next_of(device, Connected)
    for number in range(20):
        device.publish(Topics(f"made-up-{number}").state("cam-01"), b"garbage", retain=True)
    device.publish(Topics("lab").state("cam-01"), b"its own", retain=True)
    device.close()
    auditor = connected(login(guarded, "auditor", "auditor"), "auditor", ["#"])
    next_of(auditor, Connected)
    auditor.publish("end", b"end")
    assert until_end(auditor, "end") == {(Topics("lab").state("cam-01"), b"its own")}
    auditor.close()


def test_traffic_is_what_went_over_the_wire(place: MosquittoPlace) -> None:
    client = place.client("a", ["ready", "echo"])
    proxy = place.proxies["a"]
    subscribed(client)
    for _ in range(2):
        for _ in range(20):
            client.publish("echo", bytes(50_000))
        for _ in range(20):
            assert len(next_of(client, Received).payload) == 50_000
        # The counters must include the lost connection.
        proxy.cut()
        next_of(client, Disconnected)
        subscribed(client)
    counted = client.traffic()
    assert counted is not None
    assert proxy.up_bytes > 2_000_000
    assert counted.up_bytes == pytest.approx(proxy.up_bytes, rel=0.05)
    assert counted.down_bytes == pytest.approx(proxy.down_bytes, rel=0.05)


@given(st.integers(0, 60), st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_who_comes_back_is_spread_over_a_time_that_grows_with_the_fleet(
    failures: int, devices: int, draw: float
) -> None:
    spread_s = max(1.0, devices / 50)
    least, most = (reconnect_wait_s(failures, devices, at) for at in (0.0, 1.0))
    assert most - least == pytest.approx(spread_s)
    assert least <= reconnect_wait_s(failures, devices, draw) <= most
    assert least <= 7  # reconnected within ten seconds after the broker is back
    assert reconnect_wait_s(failures + 1, devices, draw) >= reconnect_wait_s(
        failures, devices, draw
    )


def test_a_client_of_a_large_fleet_stays_away_for_longer(place: MosquittoPlace) -> None:
    waits = []
    for number, devices in enumerate((1, 10**9)):
        client = place.client(str(number))
        assert isinstance(client, PahoTransport)
        next_of(client, Connected)
        client.expect(devices)
        place.cut(str(number))
        next_of(client, Disconnected)
        deadline = time.monotonic() + DEADLINE_S
        while (wait_s := client._client._reconnect_min_delay) == 1:
            assert time.monotonic() < deadline
        waits.append(wait_s)
    assert waits[0] <= 8 < waits[1]  # the second wait is shorter only once in two million runs


def test_a_client_id_is_known_to_its_owner_alone() -> None:
    assert device_client("lab", "cam-01", "b1") != device_client("lab", "cam-01", "b2")
    assert device_client("lab", "cam-01", "b1") != device_client("yard", "cam-01", "b1")
    assert coordinator_client() != coordinator_client()


def test_in_memory_there_is_no_wire_to_measure() -> None:
    assert MemoryPlace().client("a").traffic() is None


def test_before_the_first_connection_nothing_is_sent_or_counted() -> None:
    client = PahoTransport(BrokerAddress(), "a", [], Will("w", b""))
    client.publish("x", b"forgotten")
    traffic = client.traffic()
    assert traffic is not None
    assert (traffic.up_bytes, traffic.down_bytes) == (0, 0)
    assert client.next_event(0) is None
    client.close()
