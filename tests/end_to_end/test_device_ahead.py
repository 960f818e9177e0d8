"""A device that knows a later epoch than the coordinator: the journal was replaced by an old copy.

Coordinator and sessions are the real ones, with an in-memory transport.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from in_memory import Fleet, class_texts, features
from opened import opened

from fedclip_edge.agent.session import Session
from fedclip_edge.config.fleet import RunRules
from fedclip_edge.records import Plan

AHEAD = 3  # epochs


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet of two training devices and `door`, which only evaluates, in an open round."""
    plan = Plan("fedclip", options={"loss": "cross-entropy"}, rounds=2, vote="off")
    fleet = opened(Fleet(tmp_path, plan, RunRules(devices=2, quorum=1.0)))
    for seed, name in enumerate(("cam-1", "cam-2")):
        fleet.start_device(name, features(20, seed, class_texts()))
    fleet.start_device("door", features(20, 9, class_texts()), roles=("evaluate",))
    for _ in range(4):
        fleet.step()
    assert fleet.coordinator.rounds.phase == "open"
    return fleet


def restart_behind(fleet: Fleet, door: Session) -> None:
    """Restart the coordinator, with an epoch below the one that `door` knows."""
    fleet.broker.cut("coordinator")
    known = door.state_db.position
    door.state_db.move_position(replace(known, epoch=known.epoch + AHEAD))
    fleet.coordinator = fleet.start_coordinator()
    assert fleet.coordinator.epoch < door.state_db.position.epoch


def test_it_says_hello_and_the_coordinator_takes_a_later_epoch(fleet: Fleet) -> None:
    door = fleet.sessions["door"]
    restart_behind(fleet, door)
    fleet.run()
    assert fleet.coordinator.epoch > AHEAD
    fleet.coordinator.say_goodbye()
    fleet.step()
    assert door.finished
    last = [
        r for r in fleet.journal.reports.all(fleet.coordinator.run_state.run.id) if r.round == 2
    ]
    assert {report.device for report in last} == {"cam-1", "cam-2", "door"}


def test_a_run_that_ended_before_its_hello_arrived_is_over_for_it(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = fleet.sessions["door"]
    monkeypatch.setattr(door.transport, "publish", lambda *message, retain=False: None)
    restart_behind(fleet, door)
    fleet.run()
    fleet.coordinator.say_goodbye()
    fleet.coordinator.publisher.transport.close()
    monkeypatch.undo()
    for _ in range(400):  # 100 s
        if not door.finished:
            fleet.step()
    assert door.finished
    assert door.state_db.position.over
    assert door.state_db.position.epoch > fleet.coordinator.epoch
