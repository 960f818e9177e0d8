"""The round driver: contributions are stored, added and acknowledged in this order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from capable import CAPABLE
from receiver_desk import PLAN, Desk

from fedclip_edge import model_file
from fedclip_edge.config.fleet import RunRules
from fedclip_edge.coordinator import reminders, round_driver
from fedclip_edge.coordinator.admission import Admission
from fedclip_edge.coordinator.devices import Devices
from fedclip_edge.coordinator.journal import Journal, open_journal
from fedclip_edge.coordinator.journal_contributions import Contributions
from fedclip_edge.coordinator.phase_open import ATTEMPTS
from fedclip_edge.coordinator.receiver import UnfitError
from fedclip_edge.coordinator.round_driver import RoundDriver
from fedclip_edge.coordinator.round_events import (
    Heard,
    Joined,
    Left,
    Offered,
    Reported,
    Tick,
    Waiting,
)
from fedclip_edge.coordinator.round_state import RoundState
from fedclip_edge.coordinator.run_state import RunState
from fedclip_edge.errors import DiskError, RunError
from fedclip_edge.protocol import chunks
from fedclip_edge.protocol.messages import Hello, Kept, Manifest, Offer, Refused, Want

RULES = RunRules(devices=1, quorum=1.0, grace_s=5.0, deadline_s=60.0)


@dataclass
class Stage:
    """The rounds of one run on a receiver desk, with cam-0 in the cohort."""

    desk: Desk
    rounds: RoundDriver

    def upload(self, body: bytes) -> None:
        """Upload `body` as cam-0: offer, request, chunks."""
        offer = self.desk.offer(body)
        offer = Offer(offer.run, self.rounds.state.round, offer.blob)
        decided = self.desk.receiver.receive_offer("cam-0", offer)
        assert isinstance(decided, Offered)
        self.rounds.handle(decided, 1.0)
        for chunk in chunks.split(body, offer.blob):
            arrival = self.desk.receiver.receive_chunk("cam-0", chunk, 1.0)
            if arrival is not None:
                self.rounds.handle(arrival.event, 1.0, arrival)

    def heard(self) -> list[type]:
        """The types of the messages to cam-0 since the last call."""
        return [type(message) for _, message in self.desk.heard()]


HELLO = Hello("b1", "a" * 64, "roof", "encoder", "classes", CAPABLE)


@pytest.fixture(params=[1])
def stage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    desk = Desk(tmp_path, PLAN)
    rules = replace(RULES, devices=request.param)
    state = RoundState(run=desk.run.id, rules=rules, rounds=PLAN.rounds)
    devices = Devices({})
    devices.set_online("cam-0", HELLO)
    admission = Admission(desk.run, desk.run_state.journal, devices, None)
    driver = RoundDriver(
        state, desk.run_state, desk.receiver.publisher, desk.receiver, admission, devices
    )
    for number in range(request.param):
        driver.handle(Joined(f"cam-{number}", trains=True, evaluates=True), 0.0)
    assert driver.state.phase == "open"
    yield Stage(desk, driver)
    desk.run_state.journal.close()


def test_a_contribution_closes_its_round_and_the_next_one_opens(stage: Stage) -> None:
    stage.upload(stage.desk.body())
    assert (stage.rounds.state.round, stage.rounds.state.phase) == (2, "open")
    assert stage.desk.run_state.model.round == 1
    assert stage.heard() == [Want, Kept]
    assert not stage.rounds.finished


def test_it_is_on_disk_before_it_is_acknowledged(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk nothing is acknowledged, and the round does not change."""

    def full(*_arguments: object) -> None:
        raise DiskError("no space left")

    monkeypatch.setattr(Contributions, "keep", full)
    with pytest.raises(DiskError):
        stage.upload(stage.desk.body())
    assert stage.heard() == [Want]
    assert stage.rounds.state.kept == {}
    assert stage.desk.run_state.model.round == 0


def on_disk(stage: Stage) -> list[str]:
    """The devices whose contribution another process would find after a kill now."""
    state = stage.desk.run_state
    other = open_journal(state.journal.path)
    kept = list(other.contributions.kept(state.run.id, 1))
    other.close()
    return kept


two = pytest.mark.parametrize("stage", [2], indirect=True)  # the round stays open after cam-0's


@two
def test_one_that_waits_for_the_others_is_acknowledged_once_it_is_on_disk(stage: Stage) -> None:
    stage.rounds.hold(1.0)
    body = stage.desk.body()
    stage.upload(body)
    assert (on_disk(stage), stage.heard()) == ([], [Want])
    stage.upload(body)  # offered again: still not on disk
    assert (on_disk(stage), stage.heard()) == ([], [])
    stage.rounds.sync()
    assert (on_disk(stage), stage.heard()) == (["cam-0"], [Kept])
    stage.rounds.sync()
    assert stage.heard() == []


@two
def test_one_waits_for_the_others_only_for_a_moment(stage: Stage) -> None:
    stage.rounds.hold(1.0)
    stage.upload(stage.desk.body())
    stage.rounds.hold(1.0)
    assert (on_disk(stage), stage.heard()) == ([], [Want])
    stage.rounds.hold(1.0 + round_driver._HELD_S)
    assert (on_disk(stage), stage.heard()) == (["cam-0"], [Kept])


@two
def test_an_answer_to_a_hello_names_only_what_is_on_disk(stage: Stage) -> None:
    stage.rounds.hold(1.0)
    body = stage.desk.body()
    stage.upload(body)
    stage.rounds.answer_hello("cam-0", "b1")
    assert on_disk(stage) == ["cam-0"]
    *_, (_, said) = stage.desk.heard()
    assert isinstance(said, Manifest)
    assert said.kept == chunks.blob_of(body, "update").sha256


def test_a_round_closes_with_what_is_on_disk(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[str]] = []
    close_round = RunState.close_round

    def look(state: RunState, **arguments: Any) -> Any:
        found.append(on_disk(stage))
        return close_round(state, **arguments)

    monkeypatch.setattr(RunState, "close_round", look)
    stage.rounds.hold(1.0)
    stage.upload(stage.desk.body())
    assert found == [["cam-0"]]
    assert stage.heard() == [Want, Kept]


@two
def test_on_a_disk_that_fails_at_the_sync_nothing_is_acknowledged(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise DiskError("no space left")

    stage.rounds.hold(1.0)
    stage.upload(stage.desk.body())
    monkeypatch.setattr(Journal, "sync", full)
    with pytest.raises(DiskError):
        stage.rounds.sync()
    assert stage.heard() == [Want]


def test_after_the_last_round_and_its_report_the_model_is_written(stage: Stage) -> None:
    for _ in range(PLAN.rounds):
        stage.upload(stage.desk.body())
    state = stage.desk.run_state
    written = model_file.path_of(state.journal.path, state.run.id)
    assert [stage.rounds.finished, written.exists()] == [False, False]
    stage.rounds.handle(Reported("cam-0", PLAN.rounds), 2.0)
    assert [stage.rounds.finished, written.exists()] == [True, True]


def test_a_round_that_is_refused_again_and_again_ends_the_run_with_the_reason(stage: Stage) -> None:
    unfit = UnfitError(1, "norm 200 is above max_norm 100")
    refuse_often(stage, unfit, 1.0)
    with pytest.raises(RunError, match=r"round 1 .* cam-0: norm 200 is above max_norm 100"):
        stage.rounds.reject("cam-0", unfit, 1.0)
    assert stage.rounds.state.attempt == ATTEMPTS


def refuse_often(stage: Stage, unfit: UnfitError, now: float) -> None:
    """Refuse cam-0's contribution in each attempt but the last; all attempts are open in turn."""
    for _ in range(ATTEMPTS - 1):
        stage.rounds.reject("cam-0", unfit, now)
        waits: str = stage.rounds.state.phase
        now += stage.rounds.state.rules.deadline_s
        stage.rounds.handle(Tick(), now)
        assert (waits, stage.rounds.state.phase) == ("gathering", "open")


def test_a_round_that_closes_forgets_the_refusals_before_it(stage: Stage) -> None:
    refuse_often(stage, UnfitError(1, "it does not fit"), 1.0)
    stage.upload(stage.desk.body())
    refuse_often(stage, UnfitError(2, "it does not fit"), 1.0)
    assert (stage.rounds.state.round, stage.rounds.state.attempt) == (2, ATTEMPTS - 1)


def test_another_contribution_to_the_round_is_refused(stage: Stage) -> None:
    stage.rounds.handle(Joined("cam-1", trains=True, evaluates=False), 0.0)
    stage.upload(stage.desk.body())  # cam-1 is not in the cohort of this round, so the round closes
    assert stage.rounds.state.cohort == {"cam-0", "cam-1"}
    stage.heard()
    stage.upload(stage.desk.body())
    assert stage.heard() == [Want, Kept]
    assert stage.rounds.state.round == 2, "the round must wait for cam-1"
    stage.rounds.handle(Offered("cam-0", 2, "f" * 64), 1.0)
    assert stage.heard() == [Refused]


def test_who_is_silent_is_told_again_and_at_the_deadline_forgotten(stage: Stage) -> None:
    stage.rounds.handle(Tick(), reminders.REMIND_S)
    assert stage.heard() == [Manifest]
    stage.rounds.handle(Tick(), RULES.deadline_s)
    assert stage.rounds.devices.incarnations == {}
    assert stage.rounds.state.phase == "gathering"


@pytest.mark.parametrize("for_good", [True, False])
def test_who_left_is_waited_for_unless_it_left_for_good(stage: Stage, for_good: bool) -> None:
    stage.rounds.handle(Left("cam-0", for_good=for_good), 1.0)
    assert stage.rounds.state.attempt == (1 if for_good else 0)


def events(capsys: pytest.CaptureFixture[str], name: str) -> list[str]:
    """The lines of an event since the last call, without their time."""
    lines = capsys.readouterr().out.splitlines()
    return [line.partition(" ")[2] for line in lines if f" {name} " in line]


def test_it_names_who_is_missing_and_when_it_was_last_seen(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.rounds.devices.saw("cam-0", 10.0)
    stage.rounds.handle(Left("cam-0"), 20.0)
    stage.rounds.handle(Tick(), 50.0)
    stage.rounds.handle(Tick(), 50.2)
    assert events(capsys, "waiting") == [
        'waiting round=1 phase=gathering needs=1 has=0 missing="cam-0 (last seen 40 s ago)"'
    ]


def test_it_names_ten_at_most(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tuple(f"cam-{number}" for number in range(12, 24))
    stage.rounds.perform(Waiting(14, 2, missing), 1.0)
    (line,) = events(capsys, "waiting")
    assert line.endswith(' cam-21 (not seen)" more=2')
    assert line.count("not seen") == 10


def test_it_names_who_misses_a_deadline_and_who_counts_again(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    for now in (60.0, 120.0):
        stage.rounds.handle(Heard("cam-0"), now)
        stage.rounds.handle(Tick(), now)
    stage.upload(stage.desk.body())
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[2] for line in shown if "cam-0" in line] == [
        "missed device=cam-0 round=1 reason=late left_out=False",
        "missed device=cam-0 round=1 reason=late left_out=True",
        "kept device=cam-0 round=1 norm=0.012 weight=1",
        "counts_again device=cam-0 round=1",
    ]
