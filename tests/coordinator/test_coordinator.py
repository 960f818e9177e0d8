"""Whole federations in memory: every disturbance ends with the same model."""

from __future__ import annotations

import base64
import json
import random
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from capable import CAPABLE
from coordinated_fleet import (
    BOTH,
    PLAN,
    RULES,
    device,
    final,
    joined,
    make,
    restart,
    state,
    steps,
    undisturbed,
    until,
)
from drawn_records import report
from fake_learner import FakeLearner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_memory import ENCODER, TICK_S, Fleet, class_texts, features
from opened import opened

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.coordinator.deliveries import Deliveries
from fedclip_edge.coordinator.devices import ENCODING_S
from fedclip_edge.coordinator.journal import open_journal
from fedclip_edge.coordinator.journal_contributions import Contributions
from fedclip_edge.errors import ConfigError, JournalError, RefusedError, RunError
from fedclip_edge.learning import methods
from fedclip_edge.pki.registry import Device, Registry
from fedclip_edge.protocol import chunks, signing, wire
from fedclip_edge.protocol.cohort import cohort_hash
from fedclip_edge.protocol.message_parts import CHUNK_BYTES, Blob, Encoding
from fedclip_edge.protocol.messages import (
    CoordinatorState,
    DeviceState,
    Hello,
    Kept,
    Manifest,
    Message,
    Offer,
    Refused,
    Want,
)
from fedclip_edge.protocol.report import Report
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.records import Contribution, Plan, Role, Update
from fedclip_edge.transport.base import Connected, Disconnected, Flooding, Received, Will
from fedclip_edge.transport.in_memory import InMemoryBroker, InMemoryTransport
from fedclip_edge.transport.outbox import Limits, packet_size_bytes

TOPICS = Topics("lab")
STRANGER = signing.create_identity()
UNDISTURBED_STEPS = 9  # steps of an undisturbed run in `joined`; a disturbance must come earlier


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the agent: with one thread, a seed gives one result
    yield
    torch.set_num_threads(before)


# Undisturbed runs.


def test_a_run_ends_with_every_report_of_every_device(tmp_path: Path) -> None:
    fleet = joined(tmp_path)
    fleet.run()
    run = fleet.coordinator.run_state.run.id
    expected = {(closed, f"cam-{n}") for closed in range(4) for n in range(2)}
    reports = fleet.journal.reports.all(run)
    assert {(report.round, report.device) for report in reports} == expected
    assert all({"zero_shot", "federated"} <= report.accuracy.keys() for report in reports)
    assert fleet.journal.rounds.closed(run) == 3
    assert fleet.journal.runs.unfinished() is None
    assert sum(fleet.coordinator.refused_messages.values()) == 0
    steps(fleet, 1)
    for session in fleet.sessions.values():
        assert session.finished
        assert session.refused_messages == 0


def test_the_same_run_ends_with_the_same_bytes_and_training_moves_them(tmp_path: Path) -> None:
    bodies = []
    for name in "ab":
        fleet = joined(tmp_path / name)
        first = fleet.journal.rounds.newest_model(fleet.coordinator.run_state.run.id).payload
        fleet.run()
        bodies.append(final(fleet))
        assert first != bodies[-1]
    assert bodies[0] == bodies[1] == undisturbed()


def test_three_differ_from_two(tmp_path: Path) -> None:
    """The model that other tests compare with depends on the devices that took part."""
    assert undisturbed(3) != undisturbed(2)


def test_who_only_evaluates_reports_and_changes_nothing(tmp_path: Path) -> None:
    fleet = joined(tmp_path)
    device(fleet, 7, roles=("evaluate",))
    fleet.run()
    assert final(fleet) == undisturbed()
    mine = [
        r.round
        for r in fleet.journal.reports.all(fleet.coordinator.run_state.run.id)
        if r.device == "cam-7"
    ]
    assert mine[-1] == 3


def test_a_late_joiner_takes_part_from_the_next_round(tmp_path: Path) -> None:
    fleet = joined(tmp_path, quorum=0.5)
    until(fleet, lambda: state(fleet).phase == "open")
    late = device(fleet, 7)
    until(fleet, lambda: "cam-7" in state(fleet).trainers)
    joined_in = state(fleet).round
    assert joined_in < 3
    fleet.run()
    assert contributions(fleet, "cam-7") == list(range(joined_in + 1, 4))
    assert contributions(fleet, "cam-0") == [1, 2, 3]
    assert late.refused_messages == 0
    assert fleet.coordinator.refused_messages["cam-7"] == 0


def test_a_fleet_whose_updates_are_all_refused_ends_with_a_sentence(tmp_path: Path) -> None:
    """The same seed gives the same bytes, so repeating the round would not help."""
    plan = Plan("ridge", rounds=1, vote="off", max_weight=8)
    fleet = opened(Fleet(tmp_path, plan, RunRules(devices=2, deadline_s=1e6)))
    for number in range(2):
        fleet.start_device(f"cam-{number}", features(20, number, fleet.classes))
    with pytest.raises(RunError, match=r"no quorum in 5 attempts.*above the plan's max_weight 8"):
        fleet.run()


@pytest.mark.parametrize(("incarnation", "stops"), [("boot-0", False), ("boot-9", True)])
def test_of_two_with_the_same_epoch_one_stops(
    tmp_path: Path, incarnation: str, stops: bool
) -> None:
    fleet = make(tmp_path)
    other = signing.create_identity()
    state = CoordinatorState(
        incarnation, fleet.coordinator.epoch, "run-2", online=True, key=other.key
    )
    topic = Topics("lab").coordinator_state
    heard = Received(topic, wire.pack_control(state, "coordinator", topic, other))
    if stops:
        with pytest.raises(RunError, match="another coordinator took over"):
            fleet.coordinator.handle_event(heard, 0)
    else:
        fleet.coordinator.handle_event(heard, 0)


def contributions(fleet: Fleet, name: str) -> list[int]:
    """The rounds that the device contributed to, according to the journal."""
    return [number for number, devices in enumerate(contributors(fleet), 1) if name in devices]


def contributors(fleet: Fleet) -> list[set[str]]:
    """The devices that contributed to each round of the run, according to the journal."""
    run = fleet.coordinator.run_state.run.id
    return [
        set(fleet.journal.contributions.kept(run, number)) for number in range(1, PLAN.rounds + 1)
    ]


def test_a_limited_cohort_is_exact_in_every_round(tmp_path: Path) -> None:
    fleet = joined(tmp_path, 5, cohort=2)
    fleet.run()
    run = fleet.coordinator.run_state.run.id
    for number, took_part in enumerate(contributors(fleet), start=1):
        hashes = {device: cohort_hash(run, number, device) for device in fleet.sessions}
        assert sorted(took_part) == sorted(sorted(hashes, key=hashes.__getitem__)[:2])
    assert sum(fleet.coordinator.refused_messages.values()) == 0


# Disturbed runs.


@pytest.mark.parametrize("count", [2, 3])
def test_an_undisturbed_run_takes_so_many_steps(tmp_path: Path, count: int) -> None:
    fleet = joined(tmp_path, count)
    steps(fleet, UNDISTURBED_STEPS - 1)
    assert not fleet.coordinator.finished
    steps(fleet, 1)
    assert fleet.coordinator.finished


@pytest.mark.parametrize("after", range(1, UNDISTURBED_STEPS))
@pytest.mark.parametrize("away", [0, 3])
def test_a_device_that_vanishes_and_comes_back_changes_nothing(
    tmp_path: Path, after: int, away: int
) -> None:
    fleet = joined(tmp_path)
    steps(fleet, after)
    assert not fleet.coordinator.finished
    fleet.broker.cut("cam-1")
    del fleet.sessions["cam-1"]
    steps(fleet, away)
    device(fleet, 1)
    fleet.run()
    assert final(fleet) == undisturbed()


def test_a_device_away_for_longer_than_the_grace_is_given_up_and_waited_for_by_the_quorum(
    tmp_path: Path,
) -> None:
    fleet = joined(tmp_path)
    until(fleet, lambda: state(fleet).phase == "open" and state(fleet).round == 2)
    fleet.broker.cut("cam-1")
    del fleet.sessions["cam-1"]
    steps(fleet, 60)
    assert (state(fleet).phase, state(fleet).round) == ("gathering", 2)
    device(fleet, 1)
    fleet.run()
    assert final(fleet) == undisturbed()


def test_without_the_one_that_vanished_a_quorum_goes_on(tmp_path: Path) -> None:
    fleet = joined(tmp_path, 3, quorum=0.6)
    until(fleet, lambda: state(fleet).phase == "open" and state(fleet).round == 2)
    fleet.broker.cut("cam-1")
    del fleet.sessions["cam-1"]
    began = fleet.now
    fleet.run()
    assert contributions(fleet, "cam-1") == [1]
    assert contributions(fleet, "cam-0") == contributions(fleet, "cam-2") == [1, 2, 3]
    # Each round waited grace_s for cam-1, not until the deadline.
    assert fleet.now - began < 2 * RULES.deadline_s


def with_a_bad_one(folder: Path) -> Fleet:
    """A federation of three; the updates of cam-2 have a weight that the plan does not allow."""
    fleet = joined(folder, 3, quorum=0.75)
    shapes = methods.shapes(PLAN, fleet.classes, fleet.classes.vectors.shape[1])
    ones = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    fleet.sessions["cam-2"].work.learner = FakeLearner(
        shapes, "cam-2", make_update=lambda _model: Update("sum", 2, ones)
    )
    return fleet


def test_one_of_three_whose_updates_are_refused_holds_up_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = with_a_bad_one(tmp_path)
    began = fleet.now
    fleet.run()
    assert contributors(fleet) == [{"cam-0", "cam-1"}] * 3
    assert fleet.now - began < RULES.grace_s
    missed = [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    assert [line for line in missed if line.startswith("missed")] == [
        "missed device=cam-2 round=1 reason=refused left_out=False",
        "missed device=cam-2 round=1 reason=refused left_out=True",
    ]


@pytest.mark.parametrize("every", [2, 3, 5])
def test_a_restart_forgets_who_was_left_out_and_the_model_is_the_same(
    tmp_path: Path, every: int
) -> None:
    undisturbed = with_a_bad_one(tmp_path / "undisturbed")
    undisturbed.run()
    fleet = with_a_bad_one(tmp_path / "restarted")
    for _ in range(10):
        steps(fleet, every)
        if fleet.coordinator.finished:
            break
        restart(fleet)
    fleet.run()
    assert contributors(fleet) == contributors(undisturbed)
    assert final(fleet) == final(undisturbed)


def test_of_two_one_that_leaves_for_good_ends_no_run(tmp_path: Path) -> None:
    """The quorum of two devices is both of them, until one has missed two deadlines."""
    fleet = joined(tmp_path, 2, quorum=0.75)
    until(fleet, lambda: state(fleet).phase == "open" and state(fleet).round == 2)
    fleet.broker.cut("cam-1")
    del fleet.sessions["cam-1"]
    began = fleet.now
    fleet.run()
    assert contributors(fleet) == [{"cam-0", "cam-1"}, {"cam-0"}, {"cam-0"}]
    assert fleet.now - began < 2 * RULES.deadline_s


def test_who_only_evaluates_and_comes_and_goes_holds_up_no_round(tmp_path: Path) -> None:
    fleet = joined(tmp_path)
    device(fleet, 7, ("evaluate",))
    until(fleet, lambda: state(fleet).phase == "open")
    fleet.broker.cut("cam-7")
    del fleet.sessions["cam-7"]
    began = fleet.now
    until(fleet, lambda: state(fleet).phase == "final")
    assert fleet.now - began < UNDISTURBED_STEPS * TICK_S


def test_more_devices_than_are_enrolled_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coordinator_key = signing.load_or_create(tmp_path / "coordinator.key").key
    enrolled = {f"cam-{n}": Device(str(n) * 64, (), "2030-01-01") for n in range(3)}
    registry = Registry("lab", "edge", 8883, coordinator_key, devices=enrolled)
    rules = replace(RULES, devices=3)
    fleet = opened(Fleet(tmp_path, PLAN, rules, registry=registry))
    fleet.coordinator.count_enrolled()
    assert "too_few_enrolled" not in capsys.readouterr().out
    revoked = registry.with_device("cam-2", replace(enrolled["cam-2"], revoked=True))
    fleet.coordinator.apply_registry(revoked, fleet.now)
    said = "too_few_enrolled devices=3 enrolled=2 waiting_for=2 hint="
    assert said in capsys.readouterr().out
    fleet.coordinator.tick(fleet.now)
    assert 'needs=2 has=0 missing="cam-0 (not seen), cam-1 (not seen)"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "revoked", "needs"), [(3, 0, 3), (3, 1, 2), (5, 1, 3), (3, 3, 1), (2, 1, 3)]
)
def test_a_revoked_device_is_not_waited_for_and_one_to_be_enrolled_is(
    tmp_path: Path, names: int, revoked: int, needs: int
) -> None:
    coordinator_key = signing.load_or_create(tmp_path / "coordinator.key").key
    devices = {
        f"cam-{n}": Device(str(n) * 64, (), "2030-01-01", revoked=n < revoked) for n in range(names)
    }
    registry = Registry("lab", "edge", 8883, coordinator_key, devices=devices)
    fleet = opened(Fleet(tmp_path, PLAN, replace(RULES, devices=3), registry=registry))
    fleet.coordinator.count_enrolled()
    assert state(fleet).rules.devices == needs
    enough = {f"dog-{n}": Device(str(n) * 64, (), "2030-01-01") for n in range(3)}
    fleet.coordinator.apply_registry(replace(registry, devices={**devices, **enough}), fleet.now)
    assert state(fleet).rules.devices == 3


def encodes(done: int, boot: str = "b7") -> DeviceState:
    return DeviceState(boot, online=True, encoding=Encoding(done, 400))


def test_a_device_that_encodes_is_named_until_it_joins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = make(tmp_path)
    link, key = Mallory(fleet), signing.create_identity()

    def lines(message: Message, by_s: float = 0.0) -> list[str]:
        topic = TOPICS.up("cam-7") if isinstance(message, Hello) else TOPICS.state("cam-7")
        link.say(message, topic, "cam-7", key)
        fleet.now += by_s
        fleet.step()
        return re.findall(r"(?:device_encodes|waiting|joined) .*", capsys.readouterr().out)

    assert lines(encodes(40))[0] == "device_encodes device=cam-7 done=40 total=400"
    assert lines(encodes(60), 30.0) == []  # not each time
    (said,) = lines(encodes(80), 60.0)
    assert said.endswith('missing="cam-7 (encoding: 80 of 400 pictures)"')
    assert "device_encodes device=cam-7 done=320 total=400" in lines(encodes(320), ENCODING_S)
    (said,) = lines(replace(encodes(0), online=False, encoding=None), 60.0)
    assert "cam-7" not in said  # it was stopped
    lines(encodes(330))
    (joined,) = lines(hello(key))
    assert joined.startswith("joined device=cam-7")
    assert fleet.coordinator.devices.encoding == {}
    assert fleet.coordinator.refused_messages["cam-7"] == 0


@pytest.mark.parametrize("made_by", ["its key", "another key", "no device", "revoked"])
def test_with_a_registry_only_an_enrolled_device_is_said_to_encode(
    tmp_path: Path, made_by: str
) -> None:
    key, coordinator_key = signing.create_identity(), signing.load_or_create(tmp_path / "c.key")
    cam = Device(key.key, (), "2030-01-01", revoked=made_by == "revoked")
    registry = Registry("lab", "edge", 8883, coordinator_key.key, devices={"cam-7": cam})
    fleet = opened(Fleet(tmp_path, PLAN, RULES, registry=registry))
    name = "cam-8" if made_by == "no device" else "cam-7"
    signs = STRANGER if made_by == "another key" else key
    Mallory(fleet).say(encodes(40), TOPICS.state(name), name, signs)
    fleet.step()
    assert fleet.coordinator.devices.encoding.keys() == ({name} if made_by == "its key" else set())
    assert fleet.coordinator.refused_messages[name] == (made_by == "another key")
    # A retained state may be older than the key.
    Mallory(fleet).say(DeviceState("b6", online=False), TOPICS.state(name), name, signs)
    fleet.step()
    assert fleet.coordinator.devices.encoding == {}
    assert fleet.coordinator.refused_messages[name] == (made_by == "another key")


@pytest.mark.parametrize("change", ["revoked", "another key", "another device"])
def test_a_device_that_loses_its_admission_while_it_encodes_is_refused(
    tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key, coordinator_key = signing.create_identity(), signing.load_or_create(tmp_path / "c.key")
    cam = Device(key.key, (), "2030-01-01")
    registry = Registry("lab", "edge", 8883, coordinator_key.key, devices={"cam-7": cam})
    fleet = opened(Fleet(tmp_path, PLAN, RULES, registry=registry))
    Mallory(fleet).say(encodes(40), TOPICS.state("cam-7"), "cam-7", key)
    fleet.step()
    if change == "another device":
        changed = registry.with_device("cam-8", replace(cam, key="8" * 64))
    elif change == "revoked":
        changed = registry.with_device("cam-7", replace(cam, revoked=True))
    else:
        changed = registry.with_device("cam-7", replace(cam, key="8" * 64))
    capsys.readouterr()
    for expected in ({} if change == "another device" else {"cam-7": "b7"}, {}):
        assert fleet.coordinator.apply_registry(changed, fleet.now) == expected
    refused = "device_refused device=cam-7" in capsys.readouterr().out
    assert refused == (change != "another device")
    assert ("cam-7" in fleet.coordinator.devices.encoding) == (change == "another device")


def test_who_is_refused_in_the_run_is_not_called_unseen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, coordinator_key = signing.create_identity(), signing.load_or_create(tmp_path / "c.key")
    cam = Device(key.key, (), "2030-01-01")
    registry = Registry("lab", "edge", 8883, coordinator_key.key, devices={"cam-7": cam})
    fleet = opened(Fleet(tmp_path, PLAN, RULES, registry=registry))
    link = Mallory(fleet)

    def missing(message: Message) -> str:
        link.say(message, TOPICS.up("cam-7"), "cam-7", key)
        fleet.step()
        fleet.now += 60.0
        fleet.step()
        return capsys.readouterr().out.partition("waiting ")[2]

    assert 'missing="cam-7 (refused in this run)"' in missing(hello(key, encoder_id="0" * 64))
    assert "refused" not in missing(hello(key))


def test_made_up_names_that_encode_take_little_memory(fleet: Fleet) -> None:
    mallory = Mallory(fleet)
    for number in range(1100):
        name = f"made-up-{number}"
        mallory.say(encodes(40), TOPICS.state(name), name)
    until(fleet, lambda: len(fleet.coordinator.devices.encoding) == 1000)
    steps(fleet, 3)
    assert len(fleet.coordinator.devices.encoding) == 1000


def test_who_is_enrolled_does_not_matter_once_a_round_was_opened(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = Registry("lab", "edge", 8883, "0" * 64)
    fleet.coordinator.apply_registry(nobody, fleet.now)
    assert "too_few_enrolled" not in capsys.readouterr().out


def test_the_coordinators_own_link_is_not_held_against_the_devices(fleet: Fleet) -> None:
    link = fleet.coordinator.publisher.transport
    assert isinstance(link, InMemoryTransport)
    for _ in range(2):
        fleet.broker.cut(link.client_id)
        fleet.broker.come_back(link)
        steps(fleet, 1)
    assert state(fleet).departures == {}
    fleet.broker.cut("cam-1")
    steps(fleet, 1)
    assert state(fleet).departures.keys() == {"cam-1"}


@pytest.mark.parametrize("after", range(1, UNDISTURBED_STEPS))
def test_a_coordinator_killed_and_started_again_changes_nothing(tmp_path: Path, after: int) -> None:
    fleet = joined(tmp_path, 3)
    steps(fleet, after)
    assert not fleet.coordinator.finished
    run = fleet.coordinator.run_state.run
    restart(fleet)
    assert fleet.coordinator.run_state.run == run
    fleet.run()
    assert final(fleet) == undisturbed(3)


def test_a_coordinator_that_is_killed_again_and_again_changes_nothing(tmp_path: Path) -> None:
    fleet = joined(tmp_path, 3)
    run = fleet.coordinator.run_state.run
    for after in range(2, 6):
        steps(fleet, after)
        assert not fleet.coordinator.finished
        restart(fleet)
    assert fleet.coordinator.run_state.run == run
    fleet.run()
    assert final(fleet) == undisturbed(3)


def test_what_is_kept_is_not_uploaded_again_after_a_restart(tmp_path: Path) -> None:
    fleet = joined(tmp_path, 3, upload_slots=1)  # so that the uploads happen one after another
    until(fleet, lambda: len(state(fleet).kept) == 1)
    (kept,) = state(fleet).kept.items()
    restart(fleet)
    assert dict([kept]) == state(fleet).kept
    heard = listen(fleet, TOPICS.down(kept[0]))
    until(fleet, lambda: state(fleet).round == 2)
    told = [message for message in said(heard) if isinstance(message, Kept | Want)]
    assert Want not in {type(message) for message in told}
    assert all(message.sha256 == kept[1] for message in told)
    fleet.run()
    assert final(fleet) == undisturbed(3)


@pytest.mark.parametrize("after", [2, 4, 8])
def test_everything_restarted_at_once_changes_nothing(tmp_path: Path, after: int) -> None:
    fleet = joined(tmp_path)
    steps(fleet, after)
    assert not fleet.coordinator.finished
    run = fleet.coordinator.run_state.run
    for number in range(2):
        fleet.broker.cut(f"cam-{number}")
    restart(fleet)
    assert fleet.coordinator.run_state.run == run
    for number in range(2):
        device(fleet, number)
    fleet.run()
    assert final(fleet) == undisturbed()


class LossyBroker(InMemoryBroker):
    """Drops, repeats and delays messages; retained ones keep their order, as in MQTT."""

    def __init__(self, seed: int, loss: float) -> None:
        super().__init__()
        self.luck = random.Random(seed)
        self.loss = loss
        self.late: list[tuple[str, bytes]] = []
        self.lost = 0

    def deliver(self, topic: str, payload: bytes, *, retain: bool) -> None:
        if self.luck.random() < self.loss:
            self.lost += 1
            if retain:
                self._retained[topic] = payload
        elif not retain and self.luck.random() < self.loss:
            self.late.append((topic, payload))
        else:
            super().deliver(topic, payload, retain=retain)
            if self.luck.random() < self.loss:
                super().deliver(topic, payload, retain=False)
        while self.late and self.luck.random() < 0.3:
            late = self.late.pop(self.luck.randrange(len(self.late)))
            super().deliver(*late, retain=False)


@pytest.mark.parametrize("seed", range(4))
def test_messages_lost_repeated_and_reordered_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    # Many small chunks instead of one. The default of 120 KiB is written in two places.
    monkeypatch.setattr(Blob.__init__, "__defaults__", (24,))
    monkeypatch.setattr(chunks.blob_of, "__defaults__", (24,))
    broker = LossyBroker(seed, loss=0.1)
    fleet = make(tmp_path, broker=broker)
    for number in range(2):
        device(fleet, number)
    assert fleet.coordinator.run_state.blob.chunks > 5
    fleet.run(4000)
    assert broker.lost > 20
    assert final(fleet) == undisturbed()


def test_the_chunks_of_that_test_are_not_the_default() -> None:
    assert Blob("a" * 64, 1, "model").chunk_bytes == CHUNK_BYTES


class NarrowBroker(InMemoryBroker):
    """Accepts packets up to a limit and records the size of each message."""

    def __init__(self, packet_bytes: int) -> None:
        super().__init__()
        self.limits = Limits(packet_bytes)
        self.passed: list[tuple[int, bool]] = []  # size in bytes, and True for a chunk

    def accept(
        self, client: InMemoryTransport, topic: str, payload: bytes, *, retain: bool
    ) -> None:
        size = packet_size_bytes(topic, len(payload))
        assert size <= (self.limits.packet_bytes or 0)
        self.passed.append((size, chunks.is_chunk(payload)))
        super().accept(client, topic, payload, retain=retain)


def leave_100_bytes(monkeypatch: pytest.MonkeyPatch, packet_bytes: int) -> None:
    """Allow chunks of 100 bytes in such a packet: these models are smaller than a manifest."""
    monkeypatch.setattr(chunks, "_MIN_CHUNK_BYTES", 1)
    monkeypatch.setattr(chunks, "_OVERHEAD_BYTES", packet_bytes - 100)


def test_no_message_is_larger_than_the_broker_takes_and_the_model_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_100_bytes(monkeypatch, 2_000)
    broker = NarrowBroker(2_000)
    fleet = make(tmp_path, broker=broker)
    for number in range(2):
        device(fleet, number)
    fleet.run()
    chunks = [size for size, is_chunk in broker.passed if is_chunk]
    assert len(chunks) > 2 * PLAN.rounds * 2
    assert max(chunks) < 300  # model chunks as well: 100 bytes of model and the packet around them
    assert final(fleet) == undisturbed()


def test_a_broker_that_takes_less_than_before_gets_smaller_chunks(tmp_path: Path) -> None:
    """The chunks of an update that was offered earlier become smaller, too."""
    with pytest.MonkeyPatch.context() as changed:
        leave_100_bytes(changed, 2_000)
        broker = NarrowBroker(100_000)
        fleet = make(tmp_path, broker=broker)
        for number in range(2):
            device(fleet, number)
        until(fleet, lambda: all(s.upload.pending for s in fleet.sessions.values()))
        upload = fleet.sessions["cam-0"].upload
        before = upload.pending
        broker.limits = Limits(2_000)
        broker.die(forgets=True)
        for _, link in fleet.everybody():
            broker.come_back(link)
        steps(fleet, 1)
        assert before is not None
        assert upload.pending is not None
        assert upload.pending.chunks > before.chunks
        fleet.run()
    assert final(fleet) == undisturbed()


def test_a_manifest_that_the_broker_does_not_take_says_what_to_raise(tmp_path: Path) -> None:
    fleet = make(tmp_path, broker=NarrowBroker(600))
    with pytest.raises(ConfigError, match=r"packets of at most 600 bytes.*max_packet_size"):
        fleet.step()


def test_an_offer_that_comes_between_two_attempts_is_taken_in_the_next(tmp_path: Path) -> None:
    """One device is slow and another away at the deadline: the update of the slow one is kept."""
    fleet = joined(tmp_path, 3)
    until(fleet, lambda: state(fleet).phase == "open")
    slow = fleet.sessions.pop("cam-1")
    fleet.broker.cut("cam-2")
    del fleet.sessions["cam-2"]
    until(fleet, lambda: state(fleet).phase == "gathering")
    assert (state(fleet).round, state(fleet).attempt) == (1, 1)
    fleet.sessions["cam-1"] = slow
    steps(fleet, 40)
    device(fleet, 2)
    fleet.run()
    assert final(fleet) == undisturbed(3)


def test_nothing_is_acknowledged_before_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = joined(tmp_path)
    heard = listen(fleet, TOPICS.down("+"))

    def refuse(*_: object) -> None:
        raise JournalError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Contributions, "keep", refuse)
        with pytest.raises(JournalError):
            steps(fleet, 40)
    assert not [message for message in said(heard) if isinstance(message, Kept)]
    restart(fleet)
    fleet.run()
    assert final(fleet) == undisturbed()


# Departures and arrivals that the broker does not announce.


def come_back(fleet: Fleet) -> None:
    """Restore all connections, in any order."""
    for _, link in fleet.everybody():
        fleet.broker.come_back(link)


def test_who_died_with_the_broker_is_not_waited_for(tmp_path: Path) -> None:
    """The will is lost with the broker, so the departure is never announced."""
    fleet = joined(tmp_path)
    device(fleet, 2)
    until(fleet, lambda: "cam-2" in state(fleet).cohort)
    del fleet.sessions["cam-2"]
    fleet.broker.die(forgets=True)
    come_back(fleet)
    fleet.run(int((RULES.grace_s + 10) / TICK_S))
    assert contributions(fleet, "cam-1") == [1, 2, 3]


def test_a_hello_that_comes_after_its_will_holds_up_one_attempt(tmp_path: Path) -> None:
    fleet = make(tmp_path)
    ghost = Mallory(fleet)
    ghost.joins("train", "evaluate")
    for number in range(2):
        device(fleet, number)
    until(fleet, lambda: state(fleet).phase == "open")
    assert state(fleet).cohort == {"mallory", "cam-0"}
    until(fleet, lambda: state(fleet).attempt == 1)
    assert state(fleet).trainers == {"cam-0", "cam-1"}
    fleet.run(int((RULES.deadline_s + 10) / TICK_S))
    assert final(fleet) == undisturbed()


def test_a_device_thought_to_be_gone_is_asked_who_it_is(tmp_path: Path) -> None:
    """The will is late: the device has already connected again."""
    fleet = joined(tmp_path)
    until(fleet, lambda: state(fleet).phase == "open")
    gone = fleet.sessions["cam-0"].transport
    assert isinstance(gone, InMemoryTransport)
    fleet.broker.deliver(gone.will.topic, gone.will.payload, retain=True)
    fleet.run(int(20 / TICK_S))
    assert final(fleet) == undisturbed()


def test_who_has_nothing_to_say_is_there_again_when_the_coordinators_link_is(
    tmp_path: Path,
) -> None:
    """A node of a cluster fails, and the will of the coordinator with it.

    Devices at other nodes do not notice. A device that also evaluates would speak once the round is
    closed.
    """
    fleet = make(tmp_path)
    device(fleet, 0, ("train",))
    device(fleet, 1)
    until(fleet, lambda: state(fleet).phase == "open")
    slow = fleet.sessions.pop("cam-1")
    until(fleet, lambda: "cam-0" in state(fleet).kept)
    fleet.step()  # cam-0 has the answer to its hello
    link = fleet.coordinator.publisher.transport
    assert isinstance(link, InMemoryTransport)
    fleet.broker.leave("coordinator")
    fleet.broker.come_back(link)
    fleet.step()
    fleet.sessions["cam-1"] = slow
    fleet.run(int(8 / TICK_S))
    assert final(fleet) == undisturbed()


def test_a_will_of_the_coordinators_own_earlier_link_is_taken_back(tmp_path: Path) -> None:
    """A cluster may end the older connection of a client id late, and then publish its will."""
    fleet = joined(tmp_path)
    until(fleet, lambda: state(fleet).phase == "open")
    link = fleet.coordinator.publisher.transport
    assert isinstance(link, InMemoryTransport)
    fleet.broker.deliver(link.will.topic, link.will.payload, retain=True)
    fleet.run()
    retained = fleet.broker.retained(TOPICS.coordinator_state)
    message = wire.unpack_control(TOPICS.coordinator_state, retained).message
    assert isinstance(message, CoordinatorState)
    assert message.online


class Deaf(InMemoryBroker):
    """Drops the broadcast about one phase of one round on its way to cam-0."""

    said = b"nothing"

    def hand(self, client: InMemoryTransport, message: Received) -> None:
        if (
            client.client_id != "cam-0"
            or message.topic != TOPICS.manifest
            or self.said not in message.payload
        ):
            super().hand(client, message)


@pytest.mark.parametrize("said", [b'"phase":"open","round":2', b'"phase":"final"'])
def test_a_manifest_that_was_lost_is_said_again_long_before_the_deadline(
    tmp_path: Path, said: bytes
) -> None:
    broker = Deaf()
    broker.said = said
    fleet = make(tmp_path, replace(RULES, deadline_s=600.0), broker)
    for number in range(2):
        device(fleet, number)
    fleet.run(int(20 / TICK_S))
    assert final(fleet) == undisturbed()
    run = fleet.coordinator.run_state.run.id
    assert {r.device for r in fleet.journal.reports.all(run) if r.round == 3} == {"cam-0", "cam-1"}


# Peers that violate the protocol.


class Forgetful(InMemoryBroker):
    """Drops every acknowledgement to cam-0 while `losing` is set."""

    losing = False

    def deliver(self, topic: str, payload: bytes, *, retain: bool) -> None:
        if not (self.losing and topic == TOPICS.down("cam-0") and b'{"kind":"kept"' in payload):
            super().deliver(topic, payload, retain=retain)


@pytest.mark.parametrize("killed", [False, True])
def test_an_acknowledgement_lost_over_the_end_of_its_round_is_given_again(
    tmp_path: Path, killed: bool
) -> None:
    """Otherwise the residual of that contribution would also be added to the next one."""
    broker = Forgetful()
    fleet = make(tmp_path, broker=broker)
    for number in range(2):
        device(fleet, number)
    until(fleet, lambda: fleet.coordinator.run_state.model.round == 1)
    broker.losing = True
    until(fleet, lambda: fleet.coordinator.run_state.model.round == 2)
    assert fleet.sessions["cam-0"].state_db.kept_round(fleet.coordinator.run_state.run.id) == 1
    if killed:
        device(fleet, 0)
        restart(fleet)
    broker.losing = False
    fleet.run()
    assert final(fleet) == undisturbed()


@pytest.mark.parametrize("every", [2, 3, 5])
def test_devices_killed_again_and_again_change_nothing(tmp_path: Path, every: int) -> None:
    fleet = joined(tmp_path)
    kills = 0
    for kills in range(60):
        steps(fleet, every)
        if fleet.coordinator.finished:
            break
        device(fleet, kills % 2)
    assert kills >= UNDISTURBED_STEPS // every
    fleet.run()
    assert final(fleet) == undisturbed()


def test_a_coordinator_that_lost_its_journal_rises_above_what_the_fleet_has_heard(
    tmp_path: Path,
) -> None:
    fleet = joined(tmp_path)
    for _ in range(4):
        restart(fleet)
        steps(fleet, 4)
    lost = fleet.coordinator.run_state.run.id
    heard = max(session.state_db.position.epoch for session in fleet.sessions.values())
    assert heard == 5
    fleet.journal.close()
    for file in tmp_path.glob("journal.sqlite*"):
        file.unlink()
    fleet.broker.cut("coordinator")
    fleet.broker._retained.clear()  # the broker has lost its retained messages, too
    restart(fleet)
    assert fleet.coordinator.epoch == 1
    fleet.run()
    assert fleet.coordinator.run_state.run.id != lost
    assert fleet.coordinator.epoch > heard
    assert set().union(*contributors(fleet)) == {"cam-0", "cam-1"}
    restart(fleet)
    assert fleet.coordinator.epoch > heard + 1, "the epoch must be in the journal"


def test_who_was_taken_over_from_stops_also_where_it_was_not_told(tmp_path: Path) -> None:
    fleet = joined(tmp_path)
    other = open_journal(fleet.journal.path)
    other.next_epoch()
    other.close()
    with pytest.raises(RunError, match="took over the journal"):
        fleet.coordinator.tick(fleet.now)


def listen(fleet: Fleet, *topics: str) -> InMemoryTransport:
    return fleet.broker.client("listener", topics, Will("gone/listener", b""))


def said(listener: InMemoryTransport) -> list[Message]:
    found: list[Message] = []
    while (event := listener.next_event(0)) is not None:
        if isinstance(event, Received) and not chunks.is_chunk(event.payload):
            found.append(wire.unpack_control(event.topic, event.payload).message)
    return found


def hello(
    key: signing.Identity = STRANGER, roles: tuple[Role, ...] = BOTH, **changes: Any
) -> Hello:
    digest, able = class_texts().digest, replace(CAPABLE, roles=roles)
    return replace(Hello("boot", key.key, "photo", ENCODER, digest, able), **changes)


class Mallory:
    """An attacker with a connection and a key of its own."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.link = fleet.broker.client("mallory", ("none",), Will("gone/mallory", b""))

    def say(
        self,
        message: Message,
        topic: str,
        sender: str = "mallory",
        key: signing.Identity = STRANGER,
    ) -> None:
        self.link.publish(topic, wire.pack_control(message, sender, topic, key))

    def joins(self, *roles: Role) -> None:
        self.say(hello(roles=roles or ("evaluate",)), TOPICS.up("mallory"))
        self.fleet.step()


@pytest.mark.parametrize(("revision", "answers"), [(None, ["manifest", "refused"]), (99, [])])
def test_a_hello_of_another_revision_is_refused_and_changes_nothing(
    tmp_path: Path, revision: int | None, answers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A device that sends its revision compares it itself, so it needs no answer."""
    fleet = joined(tmp_path)
    link = fleet.broker.client("mallory", (TOPICS.down("mallory"),), Will("gone/mallory", b""))
    body = {**json.loads(json.dumps(hello(), default=vars)), "new": 1}
    for key in (signing.create_identity(), STRANGER):
        line = {"kind": "hello", "from": "mallory", "revision": revision, "body": body}
        if revision is None:
            del line["revision"]
        text = json.dumps(line).encode()
        signature = key.sign(TOPICS.up("mallory").encode() + b"\0" + text)
        link.publish(TOPICS.up("mallory"), text + b"\n" + base64.b64encode(signature))
        fleet.step()
    which = "a later" if revision else "an earlier"
    said = capsys.readouterr().out
    assert said.count(f"the device has {which} version of fedclip-edge") == 1
    assert "a hello of another revision has a wrong signature" in said
    found = []
    while (event := link.next_event(0)) is not None:
        if isinstance(event, Received):
            found.append(json.loads(event.payload.partition(b"\n")[0]))
    assert [one["kind"] for one in found] == answers
    assert not any("revision" in one for one in found)
    assert "mallory" not in fleet.coordinator.devices.keys
    fleet.run()
    assert final(fleet) == undisturbed()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoder_id": "f" * 64}, "its bundle has another encoder"),
        ({"classes_digest": "f" * 64}, "its bundle has other classes"),
    ],
)
def test_a_device_with_another_encoder_or_other_classes_is_refused_in_this_run(
    tmp_path: Path, changes: dict[str, str], reason: str
) -> None:
    fleet = joined(tmp_path)
    wrong = device(fleet, 7)
    for name, value in changes.items():
        setattr(wrong.publisher, name, value)
    steps(fleet, 20)
    assert reason in wrong.standby.reason
    del fleet.sessions["cam-7"]
    fleet.run()
    assert final(fleet) == undisturbed()


def test_a_device_that_shows_another_key_is_refused_for_good(fleet: Fleet) -> None:
    fleet.broker.cut("cam-1")
    (fleet.folder / "cam-1" / "device.key").unlink()
    device(fleet, 1)
    with pytest.raises(RefusedError, match="joined this run under another key"):
        steps(fleet, 20)


def test_a_key_stays_pinned_over_a_restart(fleet: Fleet) -> None:
    restart(fleet)
    fleet.broker.cut("cam-1")
    (fleet.folder / "cam-1" / "device.key").unlink()
    device(fleet, 1)
    with pytest.raises(RefusedError, match="joined this run under another key"):
        steps(fleet, 20)


def test_a_refusal_needs_no_retained_message(tmp_path: Path) -> None:
    """Without retained messages, only the answer to its hello reaches the device."""
    fleet = make(tmp_path)
    steps(fleet, 2)
    fleet.broker._retained.clear()
    stranger = device(fleet, 7)
    stranger.publisher.encoder_id = "f" * 64
    steps(fleet, 60)
    assert "another encoder" in stranger.standby.reason


def test_a_hello_under_anothers_name_does_not_end_the_one_who_has_it(fleet: Fleet) -> None:
    """The refusal reaches both clients; it names the key that it refuses."""
    Mallory(fleet).say(hello(), TOPICS.up("cam-1"), sender="cam-1")
    fleet.run()
    assert final(fleet) == undisturbed(3)


def forged_offer(fleet: Fleet) -> Offer:
    return Offer(fleet.coordinator.run_state.run.id, 1, chunks.blob_of(b"forged", "update"))


def test_who_speaks_on_anothers_topic_is_dropped_and_counted(fleet: Fleet) -> None:
    mallory = Mallory(fleet)
    before = fleet.coordinator.refused_messages["cam-1"]
    forged: list[tuple[Message, str]] = [
        (hello(), "mallory"),  # with a valid signature and its own name
        (forged_offer(fleet), "mallory"),
        (forged_offer(fleet), "cam-1"),  # with cam-1's name and its own key
        (DeviceState("cam-1-1000.0", online=False), "cam-1"),
        (report(run=fleet.coordinator.run_state.run.id, round=0, device="cam-1"), "cam-1"),
    ]
    for message, sender in forged:
        mallory.say(message, TOPICS.up("cam-1"), sender)
    fleet.step()
    assert fleet.coordinator.refused_messages["cam-1"] == before + len(forged)
    assert "cam-1" in state(fleet).trainers
    fleet.run()
    assert final(fleet) == undisturbed(3)


def test_refused_messages_are_told_once_and_then_counted_each_minute(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    mallory = Mallory(fleet)
    for _ in range(30):
        mallory.link.publish(TOPICS.up("cam-1"), b"garbage")
        mallory.say(hello(encoder_id="f" * 64), TOPICS.up("mallory"))
    capsys.readouterr()
    fleet.step()

    def told(event: str) -> list[str]:
        lines = capsys.readouterr().out.splitlines()
        return [line.partition(event)[2] for line in lines if event in line]

    first = capsys.readouterr().out.splitlines()
    assert sum("message_refused device=cam-1" in line for line in first) == 1
    assert sum("device_refused device=mallory" in line for line in first) == 1
    assert not any("count=" in line for line in first)
    fleet.coordinator.tick(fleet.now + 59)
    assert told("refused") == []
    fleet.coordinator.tick(fleet.now + 61)
    assert [line.rpartition(" ")[2] for line in told("refused")] == ["count=29", "count=29"]


def test_a_device_that_floods_is_not_heard_for_a_minute(fleet: Fleet) -> None:
    mallory = Mallory(fleet)
    mallory.joins()
    until(fleet, lambda: "mallory" in state(fleet).evaluators)
    link = fleet.coordinator.publisher.transport
    assert isinstance(link, InMemoryTransport)
    before = link.topics
    handled = fleet.coordinator.refused_messages["mallory"]
    fleet.coordinator.handle_event(Flooding("mallory"), fleet.now)
    fleet.coordinator.handle_event(Flooding("mallory"), fleet.now)
    assert [type(event) for event in list(link.inbox)[:2]] == [Disconnected, Connected]
    assert not link.subscribes(TOPICS.up("mallory"))
    for name in fleet.sessions:
        assert link.subscribes(TOPICS.up(name))
        assert link.subscribes(TOPICS.state(name))
    assert link.subscribes(TOPICS.coordinator_state)
    assert not fleet.coordinator.devices.is_online("mallory")
    # A message that was on its way already.
    fleet.coordinator.handle_event(Received(TOPICS.up("mallory"), b"late"), fleet.now)
    assert fleet.coordinator.refused_messages["mallory"] == handled
    fleet.run()
    assert final(fleet) == undisturbed(3)
    fleet.coordinator.tick(fleet.now + 61)
    assert link.topics == before


def test_a_want_adds_nothing_while_the_model_is_sent_to_all(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = fleet.coordinator.publisher
    asked = []

    def is_sending(link: InMemoryTransport, topic: str, name: str) -> bool:
        asked.append((topic, name))
        return True

    heard = listen(fleet, TOPICS.blob(fleet.coordinator.run_state.version))
    monkeypatch.setattr(InMemoryTransport, "is_sending", is_sending)
    publisher.send_wanted(((0, 9),))
    assert heard.next_event(0) in (None, Connected())
    assert heard.next_event(0) is None
    assert asked == [(TOPICS.model, fleet.coordinator.run_state.version)]
    monkeypatch.undo()
    publisher.send_wanted(((0, 9),))
    event = heard.next_event(0)
    assert isinstance(event, Received)
    assert chunks.is_chunk(event.payload)


def test_a_message_replayed_on_another_topic_is_dropped(fleet: Fleet) -> None:
    topic = TOPICS.up("cam-1")
    key = fleet.sessions["cam-1"].publisher.identity
    payload = wire.pack_control(forged_offer(fleet), "cam-1", topic, key)
    Mallory(fleet).link.publish(TOPICS.up("cam-2"), payload)
    before = fleet.coordinator.refused_messages["cam-2"]
    fleet.step()
    assert fleet.coordinator.refused_messages["cam-2"] == before + 1


def test_forged_manifests_are_dropped_by_every_device(fleet: Fleet) -> None:
    mallory = Mallory(fleet)
    right = fleet.coordinator.publisher.manifest(state(fleet), 3)
    # With the attacker's key in the manifest, or with the true key and a wrong signature.
    later = replace(right, exchange=replace(right.exchange, number=99))
    for forged in (replace(later, key=STRANGER.key), later):
        mallory.say(forged, TOPICS.manifest, "coordinator")
    fleet.step()
    assert [session.refused_messages for session in fleet.sessions.values()] == [2, 2, 2]
    fleet.run()
    assert final(fleet) == undisturbed(3)


def test_a_replayed_manifest_of_an_older_round_is_refused(fleet: Fleet) -> None:
    old = fleet.broker.retained(TOPICS.manifest)
    until(fleet, lambda: state(fleet).round == 2)
    before = [session.refused_messages for session in fleet.sessions.values()]
    Mallory(fleet).link.publish(TOPICS.manifest, old)
    fleet.step()
    assert [s.refused_messages for s in fleet.sessions.values()] == [n + 1 for n in before]
    fleet.run()
    assert final(fleet) == undisturbed(3)


def test_an_offer_larger_than_the_model_can_be_is_refused(fleet: Fleet) -> None:
    mallory = Mallory(fleet)
    mallory.joins()
    limit = wire.payload_limit_bytes(fleet.coordinator.run_state.layout.delta, PLAN.codec_up)
    run = fleet.coordinator.run_state.run.id
    heard = listen(fleet, TOPICS.down("mallory"))
    mallory.say(Offer(run, 1, Blob("a" * 64, limit + 1, "model")), TOPICS.up("mallory"))
    fleet.step()
    assert fleet.coordinator.refused_messages["mallory"] == 1
    assert not [message for message in said(heard) if isinstance(message, Want)]


def test_an_offer_before_a_hello_is_refused(fleet: Fleet) -> None:
    Mallory(fleet).say(forged_offer(fleet), TOPICS.up("mallory"))
    fleet.step()
    assert fleet.coordinator.refused_messages["mallory"] == 1


@pytest.mark.parametrize("round", [-(2**70), -1, 2**53 + 1, 2**70])
def test_an_offer_to_a_round_that_cannot_be_is_refused(fleet: Fleet, round: int) -> None:
    mallory = Mallory(fleet)
    mallory.joins()
    offer = Offer(fleet.coordinator.run_state.run.id, 1, Blob("a" * 64, 10, "model"))
    object.__setattr__(offer, "round", round)
    mallory.say(offer, TOPICS.up("mallory"))
    fleet.step()
    assert fleet.coordinator.refused_messages["mallory"] == 1


def test_an_offer_to_another_run_is_answered(fleet: Fleet) -> None:
    mallory = Mallory(fleet)
    mallory.joins()
    heard = listen(fleet, TOPICS.down("mallory"))
    mallory.say(Offer("run-0", 1, Blob("a" * 64, 10, "model")), TOPICS.up("mallory"))
    fleet.step()
    refusal = Refused(
        f"not for the open run {fleet.coordinator.run_state.run.id}",
        "contribution",
        sha256="a" * 64,
    )
    assert refusal in said(heard)


def wrong(fleet: Fleet, **changes: Any) -> Contribution:
    """A contribution of mallory to round 1 that is valid except for these changes."""
    fields: dict[str, Any] = {
        "run": fleet.coordinator.run_state.run.id,
        "round": 1,
        "device": "mallory",
        "exchange": fleet.coordinator.run_state.exchange.sha256,
        "update": ones(fleet),
    }
    return Contribution(**{**fields, **changes})


def ones(fleet: Fleet, value: float = 1.0, **changes: Any) -> Update:
    shapes = fleet.coordinator.run_state.layout.delta
    terms = {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}
    return replace(Update("sum", 1, terms), **changes)


WRONG: dict[str, tuple[Callable[[Fleet], Contribution], str]] = {
    "run": (lambda fleet: wrong(fleet, run="run-0"), "run is 'run-0'"),
    "round": (lambda fleet: wrong(fleet, round=2), "round is '2', expected 1"),
    "device": (lambda fleet: wrong(fleet, device="cam-1"), "device is 'cam-1'"),
    "exchange": (lambda fleet: wrong(fleet, exchange="a" * 64), "exchange is 'aaa"),
    "norm": (
        lambda fleet: wrong(fleet, update=ones(fleet, 1e6)),
        "above the round's max_norm",
    ),
    "weight": (
        lambda fleet: wrong(fleet, update=ones(fleet, weight=2**30)),
        "above the plan's max_weight",
    ),
    "weight of two": (
        lambda fleet: wrong(fleet, update=ones(fleet, weight=2)),
        "weight is 2; the plan gives every device the weight 1",
    ),
    "kind": (
        lambda fleet: wrong(fleet, update=ones(fleet, kind="single")),
        "kind 'single'; the strategy fedavg needs kind 'sum'",
    ),
}


@pytest.mark.parametrize(("build", "said_so"), WRONG.values(), ids=WRONG)
def test_a_contribution_that_does_not_fit_the_round_is_refused_and_never_counted(
    tmp_path: Path, build: Callable[[Fleet], Contribution], said_so: str
) -> None:
    # Mallory joined before the round opened, so that only its contribution is wrong.
    fleet = make(tmp_path, replace(RULES, devices=3, quorum=0.6))
    mallory = Mallory(fleet)
    mallory.joins("train")
    for number in range(2):
        device(fleet, number)
    until(fleet, lambda: state(fleet).phase == "open")
    assert "mallory" in state(fleet).cohort
    heard = listen(fleet, TOPICS.down("mallory"))
    data = wire.pack_contribution(build(fleet), PLAN.codec_up)
    blob = chunks.blob_of(data, "update")
    mallory.say(Offer(fleet.coordinator.run_state.run.id, 1, blob), TOPICS.up("mallory"))
    fleet.step()
    for chunk in chunks.split(data, blob):
        mallory.link.publish(TOPICS.up("mallory"), chunk)
    fleet.step()
    refusals = [message for message in said(heard) if isinstance(message, Refused)]
    assert len(refusals) == 1
    assert said_so in refusals[0].reason
    assert (refusals[0].scope, refusals[0].sha256) == ("contribution", blob.sha256)
    assert fleet.coordinator.refused_messages["mallory"] == 1
    fleet.run()
    assert set().union(*contributors(fleet)) == {"cam-0", "cam-1"}
    assert final(fleet) == undisturbed()


def test_a_body_that_is_no_contribution_is_refused(fleet: Fleet) -> None:
    key = fleet.sessions["cam-1"].publisher.identity
    fleet.sessions.pop("cam-1")
    topic = TOPICS.up("cam-1")
    blob = chunks.blob_of(b"no contribution", "update")
    mallory = Mallory(fleet)
    mallory.say(Offer(fleet.coordinator.run_state.run.id, 1, blob), topic, "cam-1", key)
    fleet.step()
    before = fleet.coordinator.refused_messages["cam-1"]
    for chunk in chunks.split(b"no contribution", blob):
        mallory.link.publish(topic, chunk)
    fleet.step()
    assert fleet.coordinator.refused_messages["cam-1"] == before + 1
    assert "cam-1" not in state(fleet).kept


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "cam-1"},
        {"run": "run-0", "device": "cam-1"},
        {"round": 3},
        {"accuracy": {"federated": 0.3}, "test_pictures": 7},
    ],
)
def test_a_report_that_cannot_be_is_refused(fleet: Fleet, changes: dict[str, Any]) -> None:
    mallory = Mallory(fleet)
    mallory.joins()
    run = fleet.coordinator.run_state.run.id
    made = report(**{"run": run, "device": "mallory", "round": 0, **changes})
    mallory.say(made, TOPICS.up("mallory"))
    fleet.step()
    assert fleet.coordinator.refused_messages["mallory"] == 1
    assert "mallory" not in {found.device for found in fleet.journal.reports.all(run)}


@pytest.mark.parametrize("joins", [True, False])
def test_a_report_of_an_earlier_run_is_late_and_not_refused(
    fleet: Fleet, joins: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    late = Mallory(fleet)
    if joins:
        late.joins()
    late.say(report(run="run-0", device="mallory", round=2), TOPICS.up("mallory"))
    fleet.step()
    assert fleet.coordinator.refused_messages["mallory"] == 0
    assert "message_refused" not in capsys.readouterr().out
    assert "mallory" not in {r.device for r in fleet.journal.reports.all("run-0")}


@pytest.mark.parametrize("name", ["device", "round", "a=b\nc", "\ud800"])
def test_no_name_of_an_accuracy_stops_the_coordinator(fleet: Fleet, name: str) -> None:
    mallory = Mallory(fleet)
    mallory.joins()
    good = report(
        run=fleet.coordinator.run_state.run.id, device="mallory", round=0, accuracy={"aa": 0.5}
    )
    topic = TOPICS.up("mallory")
    line = wire.pack_control(good, "mallory", topic, STRANGER).partition(b"\n")[0]
    line = line.replace(b'"aa"', json.dumps(name).encode())
    signed = line + b"\n" + base64.b64encode(STRANGER.sign(topic.encode() + b"\0" + line))
    mallory.link.publish(topic, signed)
    fleet.step()
    assert fleet.coordinator.refused_messages["mallory"] == 1
    fleet.run()
    assert final(fleet) == undisturbed(3)


@pytest.mark.parametrize("message", [Kept("run-1", 1, "a" * 64), Refused("no", "device")])
def test_what_a_device_does_not_say_is_refused(fleet: Fleet, message: Message) -> None:
    mallory = Mallory(fleet)
    mallory.joins()
    mallory.say(message, TOPICS.up("mallory"))
    fleet.step()
    assert fleet.coordinator.refused_messages["mallory"] == 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=80),
    st.sampled_from(
        [TOPICS.up("cam-1"), TOPICS.state("cam-1"), TOPICS.coordinator_state, TOPICS.up("Ü"), "x"]
    ),
)
def test_no_bytes_stop_the_coordinator(fleet: Fleet, payload: bytes, topic: str) -> None:
    before = state(fleet)
    for candidate in (payload, b"\xfc\x1e\x01\x00" + payload, b"{" + payload):
        fleet.coordinator.handle_event(Received(topic, candidate), fleet.now)
    assert state(fleet) == before


# Several coordinators, and unexpected content in the journal.


def claim(epoch: int, key: signing.Identity, *, online: bool = True) -> CoordinatorState:
    return CoordinatorState("another", epoch, "run-9", online=online, key=key.key)


def test_a_coordinator_that_was_taken_over_stops(fleet: Fleet) -> None:
    epoch = fleet.coordinator.epoch
    mallory = Mallory(fleet)
    for harmless in (claim(epoch, STRANGER), claim(epoch + 1, STRANGER, online=False)):
        mallory.say(harmless, TOPICS.coordinator_state, "coordinator")
        fleet.step()
    mallory.say(claim(epoch + 1, STRANGER), TOPICS.coordinator_state, "coordinator")
    with pytest.raises(RunError, match=f"took over fleet lab .epoch {epoch + 1}"):
        fleet.step()


def test_a_claim_under_another_name_is_dropped(fleet: Fleet) -> None:
    """A device of a fleet without a registry could sign one with its own key."""
    forged = claim(fleet.coordinator.epoch + 1, STRANGER)
    Mallory(fleet).say(forged, TOPICS.coordinator_state, "cam-1")
    fleet.step()
    assert fleet.coordinator.refused_messages[""] == 1


def test_a_claim_that_nobody_signed_is_dropped(fleet: Fleet) -> None:
    forged = claim(99, signing.create_identity())
    Mallory(fleet).say(forged, TOPICS.coordinator_state, "coordinator")
    fleet.step()
    assert fleet.coordinator.refused_messages[""] == 1


def test_each_start_is_under_a_higher_epoch(fleet: Fleet) -> None:
    first = fleet.coordinator.epoch
    restart(fleet)
    assert fleet.coordinator.epoch == first + 1


def test_nobody_can_use_the_epochs_up(fleet: Fleet) -> None:
    mallory = Mallory(fleet)
    first = fleet.coordinator.epoch
    for epoch, expected in ((first, first), (first + 5, first + 6), (2**53, first + 6)):
        mallory.say(hello(roles=("evaluate",), epoch=epoch), TOPICS.up("mallory"))
        fleet.step()
        assert fleet.coordinator.epoch == expected
    assert fleet.coordinator.refused_messages["mallory"] == 1
    fleet.run()
    assert final(fleet) == undisturbed(3)


def test_after_a_finished_run_serve_once_begins_a_new_one(tmp_path: Path) -> None:
    fleet = joined(tmp_path)
    fleet.run()
    first = fleet.coordinator.run_state.run.id
    restart(fleet)
    assert fleet.coordinator.run_state.run.id == first
    fleet.once = True
    restart(fleet)
    assert fleet.coordinator.run_state.run.id != first
    for number in range(2):
        fleet.sessions[f"cam-{number}"].finished = False
    fleet.run()
    assert final(fleet) == undisturbed()


def test_the_payloads_are_gone_once_the_round_is_closed(tmp_path: Path) -> None:
    fleet = joined(tmp_path)
    fleet.run()
    run = fleet.coordinator.run_state.run.id
    for number in range(1, PLAN.rounds + 1):
        assert len(fleet.journal.contributions.kept(run, number)) == 2
    assert fleet.journal.rows("SELECT * FROM payload") == []
    with pytest.raises(sqlite3.IntegrityError):
        fleet.journal.contributions.keep(run, 1, "cam-0", "a" * 64, b"x", 0.5, 1)


def test_a_manifest_says_where_the_run_stands(fleet: Fleet) -> None:
    manifest = wire.unpack_control(TOPICS.manifest, fleet.broker.retained(TOPICS.manifest)).message
    assert isinstance(manifest, Manifest)
    assert (manifest.run, manifest.phase, manifest.exchange.number) == (
        fleet.coordinator.run_state.run.id,
        "open",
        1,
    )
    assert manifest.plan == PLAN
    assert isinstance(report(), Report)


def test_only_an_unfit_device_that_is_not_revoked_fetches_the_bundle_with_its_own_key(
    tmp_path: Path,
) -> None:
    coordinator_key = signing.load_or_create(tmp_path / "coordinator.key").key
    box, other = signing.create_identity(), signing.create_identity()
    enrolled = {"cam-0": Device(box.key, (), "2030-01-01")}
    registry = Registry("lab", "edge", 8883, coordinator_key, devices=enrolled)
    fleet = opened(Fleet(tmp_path, PLAN, RULES, registry=registry))
    asked: list[Want] = []
    fleet.coordinator.publisher.deliveries = cast(
        "Deliveries", SimpleNamespace(add=asked.append, blob=None, poll=lambda _: None)
    )
    topic, want = Topics("lab").up("cam-0"), Want("a" * 64, ((0, 3),))

    def send(message: Hello | Want, identity: signing.Identity) -> None:
        payload = wire.pack_control(message, "cam-0", topic, identity)
        fleet.coordinator.handle_event(Received(topic, payload), fleet.now)

    send(want, box)
    assert asked == []  # it has not said hello
    send(Hello("b1", box.key, "photo", "", "", CAPABLE), box)
    send(want, other)
    assert asked == []
    send(want, box)
    assert asked == [want]
    revoked = registry.with_device("cam-0", replace(enrolled["cam-0"], revoked=True))
    fleet.coordinator.apply_registry(revoked, fleet.now)
    send(want, box)
    assert asked == [want]
