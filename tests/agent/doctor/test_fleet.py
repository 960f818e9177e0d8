"""Checks of the way to the fleet, with a real broker."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from brokers import StartMosquitto, free_port
from secured import Secured
from session_scene import ME, manifest, state

from fedclip_edge import log
from fedclip_edge.agent.doctor.finding import Finding
from fedclip_edge.agent.doctor.fleet import Heard, check_broker, of_fleet
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.pki import enrolment
from fedclip_edge.protocol import signing, wire
from fedclip_edge.protocol.messages import DeviceState, Manifest, Message
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport.base import Received
from fedclip_edge.transport.mqtt import PahoTransport
from fedclip_edge.vision.bundle import Bundle

TOPICS = Topics("lab")


def config_of(folder: Path, broker: BrokerAddress) -> AgentConfig:
    return AgentConfig(
        "cam-01", "lab", DataConfig(folder), folder, bundle=folder / "bundle", broker=broker
    )


def look(config: AgentConfig, bundle: Bundle | None = None) -> dict[str, Finding]:
    return {one.name: one for one in check_broker(config, lambda: bundle)}


def test_a_name_that_leads_nowhere_and_a_closed_port_are_named(tmp_path: Path) -> None:
    for broker, said in (
        (BrokerAddress(host="nothing.invalid"), "the name 'nothing.invalid' leads nowhere"),
        (BrokerAddress(port=free_port()), "does not answer"),
    ):
        found = look(config_of(tmp_path, broker))
        assert found["broker"].state == "todo"
        assert said in found["broker"].said
        assert [found[name].state for name in ("TLS", "login", "rights", "fleet")] == 4 * [
            "skipped"
        ]


def test_a_login_that_the_broker_refuses_is_named(
    tmp_path: Path, start_mosquitto: StartMosquitto
) -> None:
    found = look(config_of(tmp_path, start_mosquitto(settings="allow_anonymous false").address))
    assert found["broker"].state == "ok"
    assert found["login"].state == "todo"
    assert "correct username and password under [broker]" in (
        found["login"].said + found["login"].todo
    )


def test_a_right_that_is_missing_is_named(tmp_path: Path, start_mosquitto: StartMosquitto) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic read #\n")
    broker = start_mosquitto(settings=f"allow_anonymous true\nacl_file {acl}").address
    assert look(config_of(tmp_path, broker))["rights"].state == "skipped", "there is no key yet"
    assert not (tmp_path / "device.key").exists(), "doctor makes nothing"
    signing.load_or_create(tmp_path / "device.key")
    found = look(config_of(tmp_path, broker))["rights"]
    assert found.state == "todo"
    assert found.said == "fedclip/v2/lab/dev/cam-01/state: Not authorized"
    assert "access list" in found.todo


def test_it_disturbs_neither_the_agent_nor_what_it_left_at_the_broker(
    tmp_path: Path, start_mosquitto: StartMosquitto
) -> None:
    broker = start_mosquitto().address
    identity = signing.load_or_create(tmp_path / "device.key")
    topic = TOPICS.state("cam-01")
    retained = wire.pack_control(DeviceState("b1", online=True), "cam-01", topic, identity)
    agent = PahoTransport(broker, f"lab.cam-01.{secrets.token_hex(8)}", (topic,), None)
    agent.connect(10.0)
    events = []
    with log.observed(lambda name, _fields: events.append(name)):
        agent.publish(topic, retained, retain=True)
        found = look(config_of(tmp_path, broker))
        heard = take(agent, 2)
        agent.close()
    assert found["rights"] == Finding("rights", "ok", f"may publish on {topic}")
    assert "link_lost" not in events
    for one in heard:
        message = wire.unpack_control(one.topic, one.payload).message
        assert isinstance(message, DeviceState)
        assert message.online, "an offline state would end the device's part in a round"
    later = PahoTransport(broker, "later", (topic,), None)
    later.connect(10.0)
    (left,) = take(later, 1)
    later.close()
    assert left.payload == retained


def take(link: PahoTransport, count: int) -> list[Received]:
    """The next messages of a link."""
    found: list[Received] = []
    while len(found) < count:
        event = link.next_event(30.0)
        assert event is not None
        if isinstance(event, Received):
            found.append(event)
    return found


def say(broker: BrokerAddress, *messages: tuple[str, Message]) -> None:
    link = PahoTransport(broker, f"coordinator-{secrets.token_hex(4)}", (), None)
    link.connect(10.0)
    for topic, message in messages:
        link.publish(topic, wire.pack_control(message, "coordinator", topic, ME), retain=True)
    link.close()


def test_what_the_coordinator_says_is_told(
    tmp_path: Path, start_mosquitto: StartMosquitto, random_bundle: Bundle
) -> None:
    broker = start_mosquitto().address
    config = config_of(tmp_path, broker)
    assert look(config)["fleet"].said == "no coordinator has announced itself for the fleet 'lab'"
    said = manifest(
        takes_part=None,
        answers="",
        phase="gathering",
        devices=3,
        encoder_id=random_bundle.manifest.encoder_id,
        classes_digest=random_bundle.classes.digest,
    )
    say(broker, (TOPICS.coordinator_state, state()), (TOPICS.manifest, said))
    found = look(config, random_bundle)["fleet"]
    assert found == Finding(
        "fleet", "ok", "run-1 waits for devices before round 1; method fedclip, 3 devices"
    )
    found = look(replace(config, coordinator_key="0f" * 32), random_bundle)["fleet"]
    assert found.state == "todo"
    assert "coordinator_key" in found.todo


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: replace(config, methods=("ridge",)), "does not allow it"),
        (lambda config: config, "another bundle than this device"),
    ],
)
def test_a_run_that_does_not_fit_the_device_is_named(
    tmp_path: Path,
    random_bundle: Bundle,
    change: Callable[[AgentConfig], AgentConfig],
    said: str,
) -> None:
    config = change(config_of(tmp_path, BrokerAddress()))
    found = of_fleet(config, Heard(state(), manifest()), random_bundle)
    assert found.state == "todo"
    assert said in found.said


def test_a_coordinator_that_is_away_is_named(tmp_path: Path) -> None:
    config = config_of(tmp_path, BrokerAddress())
    found = of_fleet(config, Heard(state(online=False)), None)
    assert found.said == "the coordinator is offline; its last run is run-1"
    over: Manifest = manifest(phase="done")
    assert of_fleet(config, Heard(state(), over), None).said.startswith("run-1 is over")


def test_an_enrolled_device_and_one_that_was_revoked(tmp_path: Path) -> None:
    """The access list of `broker init` lets a doctor in, who has a client id of its own."""
    with Secured(tmp_path) as secured:
        secured.start()
        broker = secured.box("cam-01")
        found = look(config_of(tmp_path / "cam-01", broker))
        assert found["TLS"] == Finding(
            "TLS", "ok", "1.3; the certificates of both sides are accepted"
        )
        assert found["login"].state == found["rights"].state == "ok"
        assert found["fleet"].said.startswith("no coordinator has announced itself")

        other = replace(config_of(tmp_path / "cam-01", broker), id="cam-02")
        assert "Not authorized" in look(other)["rights"].said, "its topics are those of cam-01"

        plain = replace(broker, ca=None, certificate=None, key=None)
        found = look(config_of(tmp_path / "cam-01", plain))
        assert found["TLS"].state == "todo"
        assert "speaks TLS" in found["TLS"].said
        assert "set ca under [broker]" in found["TLS"].todo

        enrolment.revoke(secured.site, "cam-01")
        secured.stop()
        secured.start()
        found = look(config_of(tmp_path / "cam-01", broker))
        assert found["TLS"].state == "todo"
        assert "certificate was revoked" in found["TLS"].said
