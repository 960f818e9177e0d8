"""MQTT 5 with real brokers, and MQTT 3.1.1 with brokers that do not support it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
import system
from brokers import StartMosquitto
from mqtt_client import Gate, Proxy, connected, login, next_of, subscribed
from paho.mqtt.enums import CallbackAPIVersion
from system import DEADLINE_S, Site, wait_until
from without_mosquitto import no_mosquitto

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import ConfigError, LinkError, RefusedError
from fedclip_edge.processes.children import Children
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport import local_broker, mqtt, mqtt_version
from fedclip_edge.transport.base import Connected, Disconnected, Received, Will
from fedclip_edge.transport.mqtt import PahoTransport
from fedclip_edge.transport.outbox import WINDOW, packet_size_bytes
from fedclip_edge.vision.bundle import Bundle

pytestmark = pytest.mark.one_python
LAB = Topics("lab")
CHUNK = 120 * 1024
DYNAMIC_SECURITY = next(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"), None)


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what is known of earlier brokers on the same ports."""
    monkeypatch.setattr(mqtt_version, "_answered", {})


def version(link: PahoTransport) -> int:
    return int(link._client.protocol)


@pytest.fixture
def gate(mosquitto: BrokerAddress) -> Iterator[Gate]:
    made = Gate(mosquitto)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer timeout for a busy broker, but not for amqtt, which never answers MQTT 5."""
    if "amqtt" not in request.node.name:
        monkeypatch.setattr(mqtt, "PATIENCE_S", DEADLINE_S)


def test_mosquitto_is_spoken_5_to(mosquitto: BrokerAddress) -> None:
    link = connected(mosquitto, "five", ["ready"])
    subscribed(link)
    assert version(link) == 5
    assert link.packet_bytes() is None  # the broker has announced no limit
    link.close()


def test_amqtt_is_spoken_3_1_1_to_and_5_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("amqtt") is None:
        pytest.skip("amqtt is not installed")
    no_mosquitto(monkeypatch)
    with Children() as children:
        broker = local_broker.start(children, tmp_path)
        for number in range(2):
            link = connected(broker.address, f"client-{number}", ["ready"])
            subscribed(link)
            assert version(link) == 4
            link.close()
        connections = (tmp_path / "broker.log").read_text().count("Connection from")
        # A probe of the port; MQTT 5 and 3.1.1 by the first client; 3.1.1 by the second.
        assert connections == 4


def test_a_broker_that_closes_on_5_without_a_word_is_spoken_3_1_1_to(gate: Gate) -> None:
    first = connected(gate.address, "first", ["ready"])
    subscribed(first)
    assert gate.knocks == [5, 4]
    gate.cut()
    next_of(first, Disconnected)
    subscribed(first)
    second = connected(gate.address, "second", ["ready"])
    subscribed(second)
    assert gate.knocks == [5, 4, 4, 4]
    for link in (first, second):
        link.close()


def test_a_broker_that_dies_is_not_taken_for_one_without_5(gate: Gate) -> None:
    gate.knows_5, gate.deaths = True, 2
    link = connected(gate.address, "a", ["ready"])
    subscribed(link)
    assert gate.knocks == [5, 4, 5]
    link.close()


def test_a_broker_that_spoke_5_is_not_given_up_for_two_deaths(gate: Gate) -> None:
    gate.knows_5 = True
    link = connected(gate.address, "a", ["ready"])
    subscribed(link)
    gate.deaths = 2
    gate.cut()
    next_of(link, Disconnected)
    subscribed(link)
    assert gate.knocks == [5, 5, 5, 5]
    link.close()


@pytest.mark.parametrize("announced", [4_000, 60_000])
def test_what_is_as_large_as_announced_passes_and_what_is_larger_is_told(
    start_mosquitto: StartMosquitto, announced: int
) -> None:
    broker = start_mosquitto(settings=f"allow_anonymous true\nmax_packet_size {announced}")
    link = connected(broker.address, "a", ["ready", "bulk"])
    try:
        subscribed(link)
        assert link.packet_bytes() == announced
        most = bytes(announced - packet_size_bytes("bulk", 0))
        for _ in range(20):
            link.publish("bulk", most)
        for _ in range(20):
            assert next_of(link, Received).payload == most
        said = f"packets of at most {announced} bytes, but a message on bulk has {announced + 1}"
        with pytest.raises(ConfigError, match=rf"{said}; raise .*mosquitto: max_packet_size"):
            link.publish("bulk", most + b"1")
        subscribed_still(link)
    finally:
        link.close()
        broker.stop()


def subscribed_still(link: PahoTransport) -> None:
    """Check that the connection is the same and carries messages."""
    link.publish("ready", b"still")
    assert link.next_event(DEADLINE_S) == Received("ready", b"still")


def test_3_1_1_has_the_limit_of_the_configuration(gate: Gate) -> None:
    small = BrokerAddress(port=gate.address.port, max_packet_bytes=5_000)
    link = connected(small, "a", ["ready"])
    subscribed(link)
    assert version(link) == 4
    assert link.packet_bytes() == 5_000
    with pytest.raises(ConfigError, match="max_packet_bytes under"):
        link.publish("ready", bytes(5_000))
    link.close()


def test_the_smaller_of_announced_and_configured_counts(start_mosquitto: StartMosquitto) -> None:
    broker = start_mosquitto(settings="allow_anonymous true\nmax_packet_size 6000")
    for configured, counts in ((5_000, 5_000), (7_000, 6_000)):
        address = BrokerAddress(port=broker.address.port, max_packet_bytes=configured)
        link = connected(address, "a")
        next_of(link, Connected)
        assert link.packet_bytes() == counts
        link.close()
    broker.stop()


def test_a_limit_that_shrank_is_known_with_the_next_connected(
    start_mosquitto: StartMosquitto,
) -> None:
    broker = start_mosquitto()
    link = connected(broker.address, "a", ["ready", "bulk"])
    subscribed(link)
    broker.stop()
    small = "allow_anonymous true\nmax_packet_size 9000"
    again = start_mosquitto(broker.address.port, settings=small)
    next_of(link, Disconnected)
    wait_until(lambda: link._limits.packet_bytes == 9000, "the link to be back")
    wait_until(lambda: link._outbox._link is not None, "its subscriptions")
    # Until the sender knows the new limit, a message that is too large is dropped silently.
    link.publish("bulk", bytes(CHUNK))
    next_of(link, Connected)
    with pytest.raises(ConfigError):
        link.publish("bulk", bytes(CHUNK))
    subscribed_still(link)
    link.close()
    again.stop()


def test_no_more_is_on_its_way_than_the_broker_takes(start_mosquitto: StartMosquitto) -> None:
    broker = start_mosquitto(settings="allow_anonymous true\nmax_inflight_messages 3")
    listener = connected(broker.address, "listener", ["ready", "bulk"])
    subscribed(listener)
    proxy = Proxy(broker.address)
    speaker = connected(proxy.address, "speaker", ["ready"])
    next_of(speaker, Connected)
    assert WINDOW > 3
    proxy.stall()
    for number in range(20):
        speaker.publish("bulk", bytes([number]))
    for number in range(3):
        assert next_of(listener, Received).payload == bytes([number])
    assert listener.next_event(0.3) is None
    proxy.flow()
    for number in range(3, 20):
        assert next_of(listener, Received).payload == bytes([number])
    for link in (speaker, listener):
        link.close()
    proxy.close()
    broker.stop()


def test_what_is_larger_than_anything_of_ours_is_dropped_and_costs_nothing_else(
    mosquitto: BrokerAddress,
) -> None:
    link = connected(mosquitto, "a", ["ready", "bulk"])
    subscribed(link)
    stranger = paho.Client(CallbackAPIVersion.VERSION2, client_id="stranger")
    stranger.connect(mosquitto.host, mosquitto.port)
    stranger.loop_start()
    # mosquitto gives up a client after 20 messages that are too large for it.
    for payload in (*(25 * [bytes(mqtt._TAKES_BYTES + 1)]), b"small"):
        stranger.publish("bulk", payload, 1).wait_for_publish(DEADLINE_S)
    assert next_of(link, Received).payload == b"small"
    stranger.disconnect()
    stranger.loop_stop()
    link.close()


def test_a_message_that_the_access_list_denies_is_told_once(
    guarded: BrokerAddress, capsys: pytest.CaptureFixture[str]
) -> None:
    link = connected(login(guarded, "cam-01", "cam-01"), "cam-01", [LAB.model])
    listener = connected(login(guarded, "coordinator", "coordinator"), "c", [LAB.up("+")])
    for client in (link, listener):
        next_of(client, Connected)
    for _ in range(3):
        link.publish(LAB.up("cam-02"), b"not mine")
        link.publish(LAB.up("cam-01"), b"mine")
    for _ in range(3):
        assert next_of(listener, Received).payload == b"mine"
    wait_until(lambda: link.backlog() == 0, "the broker's answers")
    assert link.next_event(0) is None
    told = [line for line in capsys.readouterr().out.splitlines() if "message_not_taken" in line]
    assert len(told) == 1
    assert f"topic={LAB.up('cam-02')}" in told[0]
    assert re.search(r"Not authorized: .*access list .*user name", told[0])
    for client in (link, listener):
        client.close()


@pytest.fixture
def deaf(start_mosquitto: StartMosquitto, tmp_path: Path) -> BrokerAddress:
    """A broker that accepts every connection and no subscription."""
    if DYNAMIC_SECURITY is None:
        pytest.skip("mosquitto's dynamic security is not installed")
    kinds = ("publishClientSend", "publishClientReceive", "unsubscribe")
    access = [{"acltype": kind, "allow": True} for kind in kinds]
    access.append({"acltype": "subscribe", "allow": False})
    rules = {"defaultACLAccess": {one["acltype"]: one["allow"] for one in access}}
    (tmp_path / "rules.json").write_text(json.dumps({**rules, "clients": [], "roles": []}))
    (tmp_path / "rules.json").chmod(0o600)
    options = f"plugin {DYNAMIC_SECURITY}\nplugin_opt_config_file {tmp_path}/rules.json"
    return start_mosquitto(settings=f"allow_anonymous true\n{options}").address


def test_a_subscription_that_is_refused_for_good_is_told(deaf: BrokerAddress) -> None:
    link = PahoTransport(deaf, "cam-01", [LAB.manifest, LAB.model], Will("w", b""))
    told = rf"refused the subscription of 'cam-01' to {LAB.manifest}: Not authorized: .*access list"
    with pytest.raises(RefusedError, match=told):
        link.connect(DEADLINE_S)


def test_a_subscription_that_3_1_1_refuses_is_told_and_asked_for_again(deaf: BrokerAddress) -> None:
    """In MQTT 3.1.1 the one failure code may also mean that a node has just failed."""
    gate = Gate(deaf)
    link = PahoTransport(gate.address, "cam-01", [LAB.manifest], Will("w", b""))
    with pytest.raises(
        LinkError, match=rf"the subscription of .* to {LAB.manifest}: Unspecified error"
    ):
        link.connect(3.0)
    assert gate.knocks[:2] == [5, 4]
    assert gate.knocks.count(4) >= 2
    gate.close()


@contextlib.contextmanager
def scripted(*answers: bytes) -> Iterator[BrokerAddress]:
    """A broker that sends these answers to any bytes, and closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    for answer in answers:
                        client.recv(4096)
                        client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield BrokerAddress(port=server.getsockname()[1])


def test_a_broker_that_says_why_it_ends_a_connection_is_quoted() -> None:
    """mosquitto 2.0.11 does not send the reason."""
    granted = bytes([0x90, 4, 0, 1, 0, 1])
    taken_over = bytes([0xE0, 2, 0x8E, 0])
    with scripted(bytes([0x20, 3, 0, 0, 0]), granted + taken_over) as address:
        link = connected(address, "same", ["ready"])
        gone = next_of(link, Disconnected)
        assert gone.reason == "Session taken over: another client connected with the same client id"
        link.close()


def test_a_broker_that_lets_nobody_in_for_now_is_told_with_its_reason() -> None:
    with scripted(bytes([0x20, 3, 0, 0x97, 0])) as address:
        link = PahoTransport(address, "a", [], Will("w", b""))
        with pytest.raises(LinkError, match="refused the connection for now: Quota exceeded"):
            link.connect(0.1)


@pytest.fixture
def narrow(
    start_mosquitto: StartMosquitto,
    tmp_path: Path,
    random_bundle: Bundle,
    request: pytest.FixtureRequest,
) -> Iterator[Site]:
    """A fleet with a broker that limits the packet size."""
    broker = start_mosquitto(settings=f"allow_anonymous true\nmax_packet_size {request.param}")
    with Site(tmp_path, random_bundle, broker.address, "lab") as made:
        yield made
    broker.stop()


@pytest.mark.parametrize("narrow", [2_500], indirect=True)
def test_a_run_ends_over_a_broker_that_takes_little(narrow: Site) -> None:
    fleet = narrow.write_fleet(devices=1, rounds=2)
    agent = narrow.write_agent("north")
    serve = narrow.start("serve", "--once", fleet, "--json", log="serve")
    device = narrow.start("agent", agent, "--once", "--json", log="north")
    assert serve.wait(system.DEADLINE_S) == 0, narrow.text("serve")
    assert device.wait(system.DEADLINE_S) == 0, narrow.text("north")
    for log in ("serve", "north"):
        assert not [e for e in narrow.events(log) if e["event"] == "link_lost"]


@pytest.mark.parametrize("narrow", [700], indirect=True)
def test_a_broker_that_takes_no_manifest_ends_serve_with_what_to_raise(narrow: Site) -> None:
    done = system.run("serve", narrow.write_fleet(devices=1, rounds=1))
    assert done.returncode == ConfigError.exit_code, done.stderr
    assert "takes packets of at most 700 bytes" in done.stderr
    assert "mosquitto: max_packet_size" in done.stderr
