"""The state of the fleet as JSON, of a coordinator with devices in memory."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from coordinated_fleet import RULES, device, joined, make, state, steps, until
from in_memory import Fleet

from fedclip_edge import __version__
from fedclip_edge.coordinator import snapshot
from fedclip_edge.protocol import signing, wire
from fedclip_edge.protocol.message_parts import Activity, Encoding
from fedclip_edge.protocol.messages import DeviceState
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport.base import Will


def status(fleet: Fleet, **options: Any) -> dict[str, Any]:
    """The status, as a program gets it."""
    found = snapshot.status(fleet.coordinator, fleet.now, **options)
    decoded: dict[str, Any] = json.loads(json.dumps(found))
    return decoded


def row(fleet: Fleet, name: str) -> dict[str, Any]:
    rows = snapshot.devices(fleet.coordinator, fleet.now, by_class=True)["devices"]
    found: dict[str, Any] = next(one for one in rows if one["id"] == name)
    return found


def silence(fleet: Fleet, name: str) -> None:
    """Let a device stop without a goodbye, and without its will."""
    fleet.sessions.pop(name)


def test_an_open_round_shows_what_it_has_and_needs(fleet: Fleet) -> None:
    found = status(fleet)
    run = found["run"]
    assert (run["state"], run["phase"], run["kind"], run["round"]) == ("open", "open", "round", 1)
    assert (run["cohort"], run["quorum"], run["rounds"], run["paused"]) == (3, 3, 3, False)
    assert 0 < run["deadline_in_s"] <= RULES.deadline_s
    assert found["counts"] == {"enrolled": None, "known": 3, "online": 3}
    assert found["devices"] == []
    assert len(status(fleet, every=True)["devices"]) == 3


def test_before_the_first_round_it_says_who_is_missing(tmp_path: Path) -> None:
    fleet = make(tmp_path)
    device(fleet, 0)
    steps(fleet, 8)
    found = status(fleet)
    assert found["run"]["phase"] == "gathering"
    assert (found["waiting"]["needs"], found["waiting"]["has"]) == (2, 1)
    assert found["accuracy"] is None


def test_a_device_shows_its_pictures_by_class_and_side_and_where_it_encodes(fleet: Fleet) -> None:
    found = row(fleet, "cam-1")
    by_class = found["pictures_by_class"]
    assert [sum(by_class[side]) for side in ("train", "validation", "test")] == [
        found["pictures"][side] for side in ("train", "validation", "test")
    ]
    assert len(by_class["test"]) == len(fleet.classes.names)
    assert (found["provider"], found["roles"]) == ("cpu", ["train", "evaluate"])
    assert found["version"] == __version__
    assert found["encoder_id"] == fleet.coordinator.run_state.run.encoder_id
    assert found["seen_s"] is not None


def test_after_a_round_accuracies_norms_and_bytes_are_there(fleet: Fleet) -> None:
    until(fleet, lambda: len(fleet.coordinator.devices.reports) == 3 and state(fleet).round > 1)
    found = row(fleet, "cam-0")
    assert found["contributions"] >= 1
    assert found["norm"] > 0
    assert found["updates_bytes"] > 0
    assert {"zero_shot", "federated"} <= found["accuracy"].keys()
    means = status(fleet)["accuracy"]
    every = [row(fleet, f"cam-{n}")["accuracy"]["federated"] for n in range(3)]
    assert means["devices"] == 3
    assert means["federated"] == pytest.approx(sum(every) / 3)


def test_what_is_known_of_a_device_survives_a_restart_of_the_coordinator(fleet: Fleet) -> None:
    until(fleet, lambda: len(fleet.coordinator.devices.reports) == 3 and state(fleet).round > 1)
    before = row(fleet, "cam-2")
    told = ("accuracy", "contributions", "norm", "updates_bytes", "reported_round")
    assert before["contributions"] >= 1
    fleet.open_journal()
    fleet.sessions.clear()
    fleet.coordinator = fleet.start_coordinator()
    found = row(fleet, "cam-2")
    assert found["state"] == "offline"
    assert {name: found[name] for name in told} == {name: before[name] for name in told}
    assert (found["seen_s"], found["pictures"]) == (None, None)


def test_a_silent_device_is_late_after_half_of_the_deadline_and_then_counts_as_missed(
    tmp_path: Path,
) -> None:
    fleet = joined(tmp_path, 3, quorum=0.6)
    until(fleet, lambda: state(fleet).phase == "open")
    silence(fleet, "cam-0")
    steps(fleet, 8)
    assert row(fleet, "cam-0")["state"] == "online"
    until(fleet, lambda: state(fleet).deadline - fleet.now < RULES.deadline_s / 2 - 1)
    found = row(fleet, "cam-0")
    assert (found["state"], found["detail"]) == (
        "late",
        "half of the deadline is over, and the round waits for it",
    )
    waiting = status(fleet)["waiting"]
    assert [one["id"] for one in waiting["missing"]] == ["cam-0"]
    assert (waiting["needs"], waiting["has"]) == (2, 2)
    until(fleet, lambda: state(fleet).round > 1)
    found = row(fleet, "cam-0")
    assert (found["state"], found["detail"]) == ("late", "it missed the last deadline")
    assert [one["id"] for one in status(fleet)["devices"]] == ["cam-0"]


def test_a_device_that_encodes_shows_how_far_it_is(fleet: Fleet) -> None:
    encoding = DeviceState("b", online=True, encoding=Encoding(12, 90))
    fleet.coordinator.devices.note_encoding("cam-9", encoding, fleet.now)
    found = row(fleet, "cam-9")
    assert (found["state"], found["detail"]) == ("encoding", "12 of 90 pictures")
    pause = replace(encoding, activity="paused", reason="too hot")
    fleet.coordinator.devices.note_encoding("cam-9", pause, fleet.now)
    found = row(fleet, "cam-9")
    said = "too hot; it has encoded 12 of 90 pictures"
    assert (found["state"], found["detail"]) == ("paused", said)


def test_a_device_that_pauses_shows_why_until_it_goes_on(fleet: Fleet) -> None:
    session = fleet.sessions["cam-1"]
    session.pause("the box has 81 degrees", fleet.now)
    steps(fleet, 4)
    found = row(fleet, "cam-1")
    assert (found["state"], found["detail"]) == ("paused", "the box has 81 degrees")
    assert (found["id"], "paused: the box has 81 degrees") in [
        (one["id"], one["why"]) for one in status(fleet)["waiting"]["missing"]
    ]
    assert status(fleet)["counts"]["paused"] == 1
    fleet.open_journal()
    fleet.coordinator = fleet.start_coordinator()
    steps(fleet, 4)
    assert row(fleet, "cam-1")["state"] == "paused", "its state is retained"
    session.pause("", fleet.now)
    steps(fleet, 4)
    assert row(fleet, "cam-1")["state"] == "online"
    session.say_goodbye("it encodes new pictures")
    steps(fleet, 2)
    found = row(fleet, "cam-1")
    assert (found["state"], found["detail"]) == ("offline", "it encodes new pictures")
    fleet.broker.cut("cam-1")
    steps(fleet, 2)
    found = row(fleet, "cam-1")
    assert (found["state"], found["detail"]) == ("offline", "")


def test_a_reason_is_forgotten_with_the_process_that_told_it(fleet: Fleet) -> None:
    devices = fleet.coordinator.devices
    fleet.broker.cut("cam-1")
    steps(fleet, 2)
    devices.note_away("cam-1", DeviceState("b2", online=False, reason="it encodes new pictures"))
    devices.note_away("cam-1", DeviceState("b1", online=False))  # a late will
    assert row(fleet, "cam-1")["detail"] == "it encodes new pictures"
    devices.note_away("cam-1", DeviceState("b2", online=False))
    assert (row(fleet, "cam-1")["state"], row(fleet, "cam-1")["detail"]) == ("offline", "")


def test_a_pause_that_another_key_signed_is_refused(fleet: Fleet) -> None:
    fleet.broker.cut("cam-1")
    del fleet.sessions["cam-1"]
    steps(fleet, 2)
    pause = DeviceState("b9", online=False, activity="paused", reason="made up")
    topic = Topics("lab").state("cam-1")
    payload = wire.pack_control(pause, "cam-1", topic, signing.create_identity())
    fleet.broker.client("stranger", (), Will("gone", b"")).publish(topic, payload)
    steps(fleet, 2)
    assert row(fleet, "cam-1")["detail"] == ""
    assert fleet.coordinator.refused_messages["cam-1"] == 1


def test_the_worst_devices_come_first_and_a_thousand_are_counted(tmp_path: Path) -> None:
    fleet = joined(tmp_path, 3)
    until(fleet, lambda: len(fleet.coordinator.devices.reports) == 3)
    devices = fleet.coordinator.devices
    for number in range(1000):
        devices.keys[f"box-{number}"] = "a" * 64
    devices.unfit["box-7"] = "its bundle has other classes"
    began = time.monotonic()
    found = status(fleet)
    assert time.monotonic() - began < 5, "it would hold up the rounds"
    assert [one["id"] for one in found["devices"]][:1] == ["box-7"]
    assert (len(found["devices"]), found["more"]) == (snapshot.SHOWN, 1000 - snapshot.SHOWN)
    assert found["counts"] == {
        "enrolled": None, "known": 1003, "refused": 1, "offline": 999, "online": 3
    }  # fmt: skip


def test_a_run_that_is_over_waits_for_nothing(fleet: Fleet) -> None:
    fleet.run()
    found = status(fleet)
    assert (found["run"]["state"], found["waiting"]) == ("done", None)
    assert found["run"]["running_s"] >= 0


def test_in_an_open_round_a_device_says_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, found = make(tmp_path, replace(RULES, devices=1)), list[str]()
    session = device(fleet, 0)
    monkeypatch.setattr(session.work, "due", lambda *_: None)
    until(fleet, lambda: state(fleet).phase == "open")
    for activity in get_args(Activity):
        session.publisher.activity = activity
        session.publisher.publish_state(online=True)
        link = fleet.coordinator.publisher.transport
        while (event := link.next_event(0)) is not None:
            fleet.coordinator.handle_event(event, fleet.now)
        found.append(row(fleet, "cam-0")["part"])
    assert found == ["waiting", "downloading", "training", "evaluating", "waiting"]


def test_in_an_open_round_each_device_has_its_part(fleet: Fleet) -> None:
    parts = {one["id"]: one["part"] for one in status(fleet, every=True)["devices"]}
    assert set(parts.values()) <= {"waiting", "in the queue", "uploading", "done"}
    silence(fleet, "cam-0")
    until(fleet, lambda: len(state(fleet).kept) == 2)
    found = {one["id"]: one["part"] for one in status(fleet, every=True)["devices"]}
    assert (found["cam-1"], found["cam-2"]) == ("done", "done")
    assert found["cam-0"] != "done"
