"""Checks of the way to the fleet: the broker's name and port, TLS, login, rights, coordinator.

They use a client id of their own, and change nothing that is retained. So an agent that runs is not
disturbed.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedclip_edge import log
from fedclip_edge.agent.broker_choice import BrokerChoice
from fedclip_edge.agent.doctor.finding import Finding, of_error, ok, skipped, todo
from fedclip_edge.agent.publisher import retained
from fedclip_edge.agent.state_db import open_state_db
from fedclip_edge.agent.state_files import STATE
from fedclip_edge.agent.trainer import allowed_methods
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import FedclipError, PeerError
from fedclip_edge.protocol import chunks, wire
from fedclip_edge.protocol.hand_over import newest_key
from fedclip_edge.protocol.messages import CoordinatorState, DeviceState, Manifest
from fedclip_edge.protocol.signing import load_identity
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport import port_probe, tls
from fedclip_edge.transport.base import Received, device_client
from fedclip_edge.transport.mqtt import PahoTransport
from fedclip_edge.vision.bundle import Bundle

BROKER_S = 60.0  # for all of it
_STEP_S = 5.0
_RETAINED_S = 3.0  # the longest wait for the coordinator's retained messages
_NAMES = ("broker", "TLS", "login", "rights", "fleet")


def check_broker(config: AgentConfig, bundle: Callable[[], Bundle | None]) -> Iterator[Finding]:
    """Go the way to the coordinator step by step; after a step that fails, the rest is skipped."""
    address, found = _address(config), list[Finding]()
    with contextlib.ExitStack() as parts:
        for step in _steps(config, address, bundle, parts):
            found.append(step)
            yield step
            if step.state == "todo" and step.name in ("broker", "TLS", "login"):
                break
    done = {finding.name for finding in found}
    for name in _NAMES:
        if name not in done:
            yield skipped(name, f"after {found[-1].name}")


def _steps(
    config: AgentConfig,
    address: BrokerAddress,
    bundle: Callable[[], Bundle | None],
    parts: contextlib.ExitStack,
) -> Iterator[Finding]:
    yield _reach(address)
    yield _speak_tls(address)
    told = Told()
    parts.enter_context(log.observed(told.note))
    name, topics = secrets.token_hex(8), Topics(config.fleet)
    try:
        link = PahoTransport(
            address,
            device_client(config.fleet, config.id, name),
            (topics.coordinator_state, topics.manifest),
            None,
        )
        link.connect(_STEP_S)
    except FedclipError as error:
        yield of_error("login", error)
        return
    parts.callback(link.close)
    user = "with the device's certificate" if address.certificate else "as any client may"
    if address.username:
        user = f"as {address.username}"
    yield ok("login", f"accepted {user}, and may read what the coordinator says")
    heard = _hear(link, config.coordinator_key)
    yield _publish(config, link, told, name)
    try:
        its = bundle()
    except FedclipError:
        its = None  # the check of the bundle reports it
    yield of_fleet(config, heard, its)


@dataclass(eq=False)
class Told:
    """The reason in the log why the broker did not take a message."""

    not_taken: str = ""

    def note(self, event: str, fields: Mapping[str, Any]) -> None:
        """Note a log event."""
        if event == "message_not_taken":
            self.not_taken = str(fields["reason"])


@dataclass(eq=False)
class Heard:
    """The coordinator's retained messages, and the reason why one was not accepted."""

    state: CoordinatorState | None = None
    manifest: Manifest | None = None
    refused: str = ""

    def add(self, topic: str, payload: bytes, coordinator_key: str) -> None:
        """Note a message if the coordinator signed it."""
        if chunks.is_chunk(payload):
            return
        try:
            signed = wire.unpack_control(topic, payload)
            message = signed.message
            if isinstance(message, CoordinatorState):
                signed.check(_key(coordinator_key, message))
                self.state = message
            elif isinstance(message, Manifest):
                signed.check(message.key)
                self.manifest = message
        except PeerError as error:
            self.refused = str(error)


def _key(known: str, state: CoordinatorState) -> str:
    return newest_key(known, state.hand_overs) if known else state.key


def _address(config: AgentConfig) -> BrokerAddress:
    """The broker that the agent uses: that of agent.toml, or the one to which it has moved."""
    file = config.state_dir / STATE
    if not file.exists():
        return config.broker
    try:
        with contextlib.closing(open_state_db(file)) as state_db:
            return BrokerChoice(config.broker, state_db).current
    except FedclipError:
        return config.broker


def _reach(address: BrokerAddress) -> Finding:
    where = f"{address.host}:{address.port}"
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        said = f"the name {address.host!r} leads nowhere: {getattr(error, 'strerror', error)}"
        return todo("broker", said, "correct host under [broker], or the DNS server of this box")
    ip = found[0][4][0]
    shown = where if ip == address.host else f"{where} ({ip})"
    try:
        socket.create_connection((address.host, address.port), _STEP_S).close()
    except OSError as error:
        said = f"{shown} does not answer: {error.strerror or error}"
        what = "start the broker, open the port in firewalls, or correct host and port"
        return todo("broker", said, f"{what} under [broker]")
    return ok("broker", f"{shown} answers")


def _speak_tls(address: BrokerAddress) -> Finding:
    try:
        tls.examine(address, _STEP_S)
    except FedclipError as error:
        wrong = port_probe.mismatch(address, _STEP_S)
        if wrong:
            said, _, what = wrong.partition("; ")
            return todo("TLS", said, what)
        return of_error("TLS", error)
    if address.ca is not None:
        return ok("TLS", "1.3; the certificates of both sides are accepted")
    wrong = port_probe.mismatch(address, _STEP_S)
    if wrong:
        said, _, what = wrong.partition("; ")
        return todo("TLS", said, what)
    return ok("TLS", "not used: [broker] names no ca, so messages can be read on their way")


def _hear(link: PahoTransport, coordinator_key: str) -> Heard:
    """Wait for the coordinator's retained messages."""
    heard, ends = Heard(), time.monotonic() + _RETAINED_S
    while time.monotonic() < ends and (heard.state is None or heard.manifest is None):
        event = link.next_event(0.1)
        if isinstance(event, Received):
            heard.add(event.topic, event.payload, coordinator_key)
    return heard


def _publish(config: AgentConfig, link: PahoTransport, told: Told, name: str) -> Finding:
    """Publish one message on the device's topic; the coordinator does nothing about it.

    It is not retained, so the state that the agent left there stays.
    """
    own = config.state_dir / "device.key"
    if config.broker.key is None and not own.exists():
        return skipped("rights", "the device has no key yet; the agent makes it when it starts")
    identity = load_identity(config.broker.key, own)
    message = retained(config, identity, DeviceState(name, online=True))
    link.publish(message.topic, message.payload)
    ends = time.monotonic() + _STEP_S
    while time.monotonic() < ends and not told.not_taken:
        event = link.next_event(0.1)
        if event is None and link.backlog() == 0:
            break
    else:
        if not told.not_taken:
            said = f"the broker did not acknowledge a message on {message.topic}"
            return todo("rights", said, "read the log of the broker")
    link.next_event(0.1)  # the refusal comes as a line for the log
    if told.not_taken:
        said, _, what = told.not_taken.partition(": ")
        what = what or "correct the access list of the broker"
        return todo("rights", f"{message.topic}: {said}", what)
    if not link.gives_reasons:
        return ok("rights", "the broker took a message, but MQTT 3.1.1 does not say if it counts")
    return ok("rights", f"may publish on {message.topic}")


def of_fleet(config: AgentConfig, heard: Heard, bundle: Bundle | None) -> Finding:
    """The finding about what the coordinator says; without I/O."""
    state, manifest = heard.state, heard.manifest
    if heard.refused and (state is None or manifest is None):
        what = "compare coordinator_key with the coordinator's, and the versions of both programs"
        return todo("fleet", f"a message of the coordinator is refused: {heard.refused}", what)
    if state is None:
        said = f"no coordinator has announced itself for the fleet {config.fleet!r}"
        what = "start `fedclip-edge serve` with this broker, and compare 'fleet' with fleet.toml"
        return todo("fleet", said, what)
    if not state.online:
        what = "start `fedclip-edge serve`, or wait for its operator"
        return todo("fleet", f"the coordinator is offline; its last run is {state.run}", what)
    if manifest is None:
        return ok("fleet", f"the coordinator is online with {state.run}, which has not begun")
    said = f"{_phase(manifest)}; method {manifest.plan.method}, {manifest.devices} devices"
    if manifest.plan.method not in allowed_methods(config):
        what = f"allow {manifest.plan.method!r} in methods, or let this device wait"
        return todo("fleet", f"{said}; methods in agent.toml does not allow it", what)
    if bundle is None:
        return ok("fleet", said)
    ours = bundle.manifest.encoder_id, bundle.classes.digest
    if ours != (manifest.encoder_id, manifest.classes_digest):
        if config.export_key and manifest.bundle is not None:
            return ok("fleet", f"{said}; the agent fetches its bundle")
        what = "copy the coordinator's bundle to this box, or sign it so that boxes fetch it"
        return todo("fleet", f"{said}; it has another bundle than this device", what)
    return ok("fleet", said)


def _phase(manifest: Manifest) -> str:
    number = manifest.exchange.number
    return {
        "gathering": f"{manifest.run} waits for devices before round {number}",
        "open": f"{manifest.run}: round {number} is open",
        "final": f"{manifest.run} collects the last reports",
        "done": f"{manifest.run} is over, and no other run has begun",
    }[manifest.phase]
