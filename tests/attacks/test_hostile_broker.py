"""An enrolled fleet with a broker that reads, alters, forges and replays messages.

The model must not change. A broker can drop every message, and then no run ends; so each attack
here stops at some point, and the run must not show any effect of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from capable import CAPABLE
from coordinated_fleet import PLAN, RULES, device, final, restart, steps, undisturbed
from in_memory import ENCODER, Fleet, class_texts
from opened import opened

from fedclip_edge.agent.session import Session
from fedclip_edge.coordinator.resume import resume_coordinator
from fedclip_edge.errors import RefusedError
from fedclip_edge.pki.registry import Device, Registry
from fedclip_edge.protocol import chunks, signing, wire
from fedclip_edge.protocol.message_parts import Blob
from fedclip_edge.protocol.messages import (
    CoordinatorState,
    Hello,
    Kept,
    Manifest,
    Message,
    Offer,
    Refused,
)
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.records import Contribution, Update
from fedclip_edge.transport.in_memory import InMemoryBroker

TOPICS = Topics("lab")
EVIL = signing.create_identity()
BOXES = ("cam-0", "cam-1")
Said = tuple[str, bytes, bool]  # topic, payload, retained


class HostileBroker(InMemoryBroker):
    """Calls `attack` for each message and keeps a record of all messages."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Said] = []
        self.attack: Callable[[Said], Iterator[Said]] | None = None

    def deliver(self, topic: str, payload: bytes, *, retain: bool) -> None:
        said = (topic, payload, retain)
        self.heard.append(said)
        for changed in [said] if self.attack is None else self.attack(said):
            self.inject(*changed)

    def inject(self, topic: str, payload: bytes, retained: bool = False) -> None:  # noqa: FBT002
        super().deliver(topic, payload, retain=retained)

    def forge(self, message: Message, topic: str, sender: str) -> None:
        self.inject(topic, wire.pack_control(message, sender, topic, EVIL))


def enrolled(folder: Path, broker: InMemoryBroker, *, pinned: bool = True) -> Fleet:
    """A fleet of two with keys pinned before the first message; the devices have not started."""
    enrolled = Registry("lab", "edge", 8883, signing.load_or_create(folder / "coordinator.key").key)
    for name in BOXES:
        key = signing.load_or_create(folder / name / "device.key").key
        enrolled = enrolled.with_device(name, Device(key, ("1",), "2099-01-01"))
    registry = enrolled if pinned else None
    return opened(Fleet(folder, PLAN, RULES, broker=broker, registry=registry))


@pytest.fixture
def broker() -> HostileBroker:
    return HostileBroker()


@pytest.fixture
def fleet(tmp_path: Path, broker: HostileBroker) -> Fleet:
    return enrolled(tmp_path, broker)


def evil_model(fleet: Fleet) -> tuple[bytes, Blob]:
    model = fleet.coordinator.run_state.model
    terms = {name: np.full_like(values, 0.25) for name, values in model.parameters.items()}
    data = wire.pack_model(replace(model, parameters=terms), PLAN.codec_down)
    return data, chunks.blob_of(data, "update")


def versions(fleet: Fleet) -> set[str]:
    held = [session.download.held for session in fleet.sessions.values()]
    return {"" if one is None else one.version for one in held}


def message(said: Said) -> Message | None:
    if chunks.is_chunk(said[1]):
        return None
    return wire.unpack_control(*said[:2]).message


def start(fleet: Fleet) -> list[Session]:
    return [device(fleet, number) for number in range(len(BOXES))]


# Replaced models.


def test_it_cannot_swap_a_model_by_a_manifest_of_its_own(
    fleet: Fleet, broker: HostileBroker
) -> None:
    """Even if its manifest is the first one that a device receives."""
    data, blob = evil_model(fleet)

    def swap(said: Said) -> Iterator[Said]:
        topic, _, retained = said
        told = message(said)
        if isinstance(told, Manifest):
            evil = replace(told, model=blob, key=EVIL.key)
            yield topic, wire.pack_control(evil, "coordinator", topic, EVIL), retained
            for chunk in chunks.split(data, blob):
                yield TOPICS.model, chunk, False
        elif isinstance(told, CoordinatorState):
            evil_state = replace(told, key=EVIL.key)
            yield topic, wire.pack_control(evil_state, "coordinator", topic, EVIL), retained
        else:
            yield said

    broker.attack = swap
    start(fleet)
    steps(fleet, 60)
    assert versions(fleet) == {""}
    assert all(session.refused_messages for session in fleet.sessions.values())
    broker.attack = None
    fleet.run()
    assert final(fleet) == undisturbed()


def test_it_cannot_swap_a_model_by_other_chunks(fleet: Fleet, broker: HostileBroker) -> None:
    """Chunks are not signed; the manifest names the hash of the whole model."""
    data, _ = evil_model(fleet)

    def swap(said: Said) -> Iterator[Said]:
        topic, _, retained = said
        if message(said) is None and topic.startswith((TOPICS.model, TOPICS.blob(""))):
            true = fleet.coordinator.run_state.blob
            padded = (data + bytes(true.size_bytes))[: true.size_bytes]
            for chunk in chunks.split(padded, true):
                yield topic, chunk, retained
        else:
            yield said

    broker.attack = swap
    start(fleet)
    steps(fleet, 60)
    assert versions(fleet) == {""}
    broker.attack = None
    fleet.run()
    assert final(fleet) == undisturbed()


# Forged contributions.


def evil_contribution(fleet: Fleet, name: str) -> tuple[bytes, Offer]:
    run, run_state = fleet.coordinator.run_state.run, fleet.coordinator.run_state
    terms = {key: np.ones_like(values) for key, values in run_state.model.parameters.items()}
    data = wire.pack_contribution(
        Contribution(
            run=run.id,
            round=run_state.model.round + 1,
            device=name,
            exchange=run_state.exchange.sha256,
            update=Update("sum", 1, terms),
        ),
        PLAN.codec_up,
    )
    return data, Offer(run.id, run_state.model.round + 1, chunks.blob_of(data, "update"))


def hello(incarnation: str = "evil") -> Hello:
    digest = class_texts().digest
    return Hello(incarnation, EVIL.key, "x", ENCODER, digest, CAPABLE)


def contribute(fleet: Fleet, broker: HostileBroker, name: str) -> None:
    """Send all messages of a contribution, signed with the broker's own key."""
    data, offer = evil_contribution(fleet, name)
    broker.forge(hello(), TOPICS.up(name), name)
    for _ in range(3):
        broker.forge(offer, TOPICS.up(name), name)
        steps(fleet, 1)
        for chunk in chunks.split(data, offer.blob):
            broker.inject(TOPICS.up(name), chunk)
        steps(fleet, 1)


@pytest.mark.parametrize("name", [*BOXES, "cam-7"])
def test_it_cannot_forge_a_contribution(fleet: Fleet, broker: HostileBroker, name: str) -> None:
    """Tested with enrolled names, also before their first message, and with a new name."""
    contribute(fleet, broker, name)
    start(fleet)
    contribute(fleet, broker, name)
    fleet.run()
    assert final(fleet) == undisturbed()
    assert fleet.coordinator.refused_messages[name] > 3


def test_it_cannot_forge_one_over_the_chunks_of_a_true_offer(
    fleet: Fleet, broker: HostileBroker
) -> None:
    """A body that replaces a valid contribution is never counted."""

    def swap(said: Said) -> Iterator[Said]:
        topic, _, retained = said
        if message(said) is None and topic == TOPICS.up("cam-0"):
            offer = fleet.coordinator.receiver.uploads.offer_of("cam-0")
            data, _ = evil_contribution(fleet, "cam-0")
            padded = (data + bytes(offer.blob.size_bytes))[: offer.blob.size_bytes]
            for chunk in chunks.split(padded, offer.blob):
                yield topic, chunk, retained
        else:
            yield said

    broker.attack = swap
    start(fleet)
    steps(fleet, 40)
    assert set(fleet.coordinator.run_state.kept()) <= {"cam-1"}
    broker.attack = None
    fleet.run()
    assert final(fleet) == undisturbed()


def test_without_enrolment_the_first_key_wins(tmp_path: Path, broker: HostileBroker) -> None:
    """The same attack without pinned keys, to show that the tests above depend on enrolment."""
    fleet = enrolled(tmp_path, broker, pinned=False)
    broker.forge(hello(), TOPICS.up("cam-0"), "cam-0")
    steps(fleet, 1)
    start(fleet)
    with pytest.raises(RefusedError, match="joined this run under another key"):
        fleet.run()


# Replayed messages.


def test_it_cannot_replay_an_old_round(fleet: Fleet, broker: HostileBroker) -> None:
    """After each round, the broker sends all earlier messages of devices and coordinator again."""
    start(fleet)
    seen = 0
    while not fleet.coordinator.finished:
        fleet.step()
        closed = fleet.coordinator.run_state.model.round
        if closed > seen:
            seen = closed
            for said in list(broker.heard):
                broker.inject(*said[:2])
    assert seen == PLAN.rounds
    assert final(fleet) == undisturbed()


def test_a_device_that_starts_anew_does_not_take_an_old_round_for_the_open_one(
    fleet: Fleet, broker: HostileBroker
) -> None:
    """The new process knows no epoch and no round; it believes only an answer to its own hello."""
    sessions = start(fleet)
    while fleet.coordinator.run_state.model.round < 1:
        fleet.step()
    old = list(broker.heard)
    while fleet.coordinator.run_state.model.round < 2:
        fleet.step()

    def only_the_past(said: Said) -> Iterator[Said]:
        if not said[0].endswith(("down", "model", "manifest", "coord/state")):
            yield said

    broker.attack = only_the_past
    broker._retained.clear()
    anew = device(fleet, 0)
    assert anew is not sessions[0]
    for said in old:
        broker.inject(*said[:2])
    for _ in range(8):
        fleet.step()
        for said in old:
            if said[0].endswith(("down", "model", "manifest", "coord/state")):
                broker.inject(*said[:2])
    assert anew.upload.pending is None  # it must not train
    assert anew.evaluation_queue.report is None  # it must not evaluate
    broker.attack = None
    fleet.run()
    assert final(fleet) == undisturbed()


def test_it_cannot_end_a_run_or_a_device_by_a_word_of_its_own(
    fleet: Fleet, broker: HostileBroker
) -> None:
    start(fleet)
    steps(fleet, 3)
    run = fleet.coordinator.run_state.run.id
    takes_over = CoordinatorState("evil", 2**50, run, online=True, key=EVIL.key)
    broker.forge(takes_over, TOPICS.coordinator_state, "coordinator")
    for name, session in fleet.sessions.items():
        for word in (
            Refused("go", "device", key=session.publisher.identity.key),
            Kept(run, 1, "a" * 64),
        ):
            broker.forge(word, TOPICS.down(name), "coordinator")
    fleet.run()
    assert final(fleet) == undisturbed()


# Devices that are revoked during a run.


def test_a_revoked_device_is_told_and_nothing_of_it_is_taken_any_more(
    fleet: Fleet, broker: HostileBroker
) -> None:
    start(fleet)
    steps(fleet, 3)
    assert fleet.registry is not None
    gone = fleet.registry.devices["cam-1"]
    fewer = fleet.registry.with_device("cam-1", replace(gone, revoked=True))
    incarnation = fleet.sessions["cam-1"].publisher.incarnation
    assert fleet.coordinator.apply_registry(fewer, fleet.now) == {"cam-1": incarnation}
    assert fleet.coordinator.apply_registry(fewer, fleet.now) == {}
    with pytest.raises(RefusedError, match="cam-1: it was revoked"):
        steps(fleet, 5)
    before = fleet.coordinator.refused_messages["cam-1"]
    kept = dict(fleet.coordinator.run_state.kept())
    for said in [s for s in broker.heard if s[0] == TOPICS.up("cam-1")]:
        broker.inject(*said[:2])
    del fleet.sessions["cam-1"]
    steps(fleet, 1)
    assert fleet.coordinator.refused_messages["cam-1"] > before
    assert fleet.coordinator.run_state.kept().keys() - kept.keys() <= {"cam-0"}
    # a new process of the device, and a coordinator that starts with the new registry
    fleet.registry = fewer
    restart(fleet)
    device(fleet, 1)
    with pytest.raises(RefusedError, match="cam-1: it was revoked"):
        steps(fleet, 20)


@pytest.mark.parametrize("away", [False, True])
def test_a_round_does_not_wait_for_a_device_that_was_revoked(
    fleet: Fleet, broker: HostileBroker, *, away: bool
) -> None:
    rules = replace(fleet.rules, quorum=0.5, grace_s=900.0, deadline_s=1000.0)
    its = fleet.coordinator
    fleet.coordinator = resume_coordinator(
        replace(fleet.config, rules=rules),
        its.run_state,
        its.publisher,
        fleet.now,
        registry=fleet.registry,
    )
    start(fleet)
    # only the hellos of cam-1 arrive
    broker.attack = lambda said: iter(
        () if said[0] == TOPICS.up("cam-1") and not isinstance(message(said), Hello) else (said,)
    )
    steps(fleet, 20)
    assert fleet.coordinator.run_state.kept().keys() == {"cam-0"}
    if away:
        broker.cut("cam-1")
        steps(fleet, 20)
    assert fleet.coordinator.run_state.model.round == 0
    assert fleet.registry is not None
    gone = fleet.registry.devices["cam-1"]
    fewer = fleet.registry.with_device("cam-1", replace(gone, revoked=True))
    fleet.coordinator.apply_registry(fewer, fleet.now)
    assert fleet.coordinator.run_state.model.round == 1


def test_a_manifest_says_how_many_may_come_back(fleet: Fleet) -> None:
    assert fleet.coordinator.admission.fleet_size == len(BOXES)
    assert fleet.registry is not None
    enrolled = fleet.registry
    for number in range(200):
        enrolled = enrolled.with_device(f"box-{number}", Device("a" * 64, ("1",), "2099-01-01"))
    fleet.coordinator.apply_registry(enrolled, fleet.now)
    assert fleet.coordinator.admission.fleet_size == 202
