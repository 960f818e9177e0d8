"""A coordinator and devices that a test moves step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from in_memory import Fleet, features
from opened import opened

from fedclip_edge.agent.session import Session
from fedclip_edge.config.fleet import RunRules
from fedclip_edge.coordinator.journal import open_journal
from fedclip_edge.records import Plan, Role
from fedclip_edge.transport.in_memory import InMemoryBroker

PLAN = Plan("fedclip", rounds=3, vote="off", options={"lr": 0.01, "batch_size": 8})


RULES = RunRules(devices=2, quorum=1.0, deadline_s=30.0, grace_s=10.0)


BOTH: tuple[Role, ...] = ("train", "evaluate")


def make(folder: Path, rules: RunRules = RULES, broker: InMemoryBroker | None = None) -> Fleet:
    folder.mkdir(exist_ok=True)
    return opened(Fleet(folder, PLAN, rules, broker=broker or InMemoryBroker()))


def device(fleet: Fleet, number: int, roles: tuple[Role, ...] = BOTH) -> Session:
    """Start cam-NUMBER with its own pictures; restart it if it ran before."""
    train = features(24, number, fleet.classes)
    return fleet.start_device(
        f"cam-{number}", train, features(8, 90 + number, fleet.classes), roles
    )


def joined(folder: Path, count: int = 2, **changes: Any) -> Fleet:
    fleet = make(folder, replace(RULES, devices=count, **changes))
    for number in range(count):
        device(fleet, number)
    return fleet


def steps(fleet: Fleet, count: int) -> None:
    for _ in range(count):
        fleet.step()


def final(fleet: Fleet) -> bytes:
    assert fleet.coordinator.finished
    newest = fleet.journal.rounds.newest_model(fleet.coordinator.run_state.run.id)
    assert newest.round == PLAN.rounds
    return newest.payload


@cache
def undisturbed(count: int = 2) -> bytes:
    """The final model of a run without any disturbance."""
    with TemporaryDirectory() as folder:
        fleet = joined(Path(folder), count)
        fleet.run()
        fleet.close()
        return final_of(fleet)


def final_of(fleet: Fleet) -> bytes:
    again = open_journal(fleet.config.journal)
    run = again.runs.last()
    assert run is not None
    body = again.rounds.newest_model(run.id).payload
    again.close()
    return body


def restart(fleet: Fleet) -> None:
    """Kill the coordinator's process and start another one with the same journal."""
    fleet.open_journal()
    fleet.coordinator = fleet.start_coordinator()


def state(fleet: Fleet) -> Any:
    return fleet.coordinator.rounds


def until(fleet: Fleet, condition: Callable[[], bool], count: int = 400) -> None:
    for _ in range(count):
        if condition():
            return
        fleet.step()
    raise AssertionError("the condition never became true")
