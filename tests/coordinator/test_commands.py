"""The operator's commands, over a fleet in memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from coordinated_fleet import PLAN, RULES, device, joined, restart, state, until
from in_memory import Fleet
from opened import opened
from served import Served

from fedclip_edge import model_file
from fedclip_edge.config.fleet import RunSchedule
from fedclip_edge.records import Plan


@pytest.fixture
def served(tmp_path: Path) -> Served:
    """A fleet of two before its first round, of three."""
    return Served(joined(tmp_path, 2))


def trained(folder: Path, plan: Plan, count: int = 2) -> Served:
    folder.mkdir(exist_ok=True)
    fleet = opened(Fleet(folder, plan, replace(RULES, devices=count)))
    for number in range(count):
        device(fleet, number)
    return Served(fleet)


def closed(served: Served) -> int:
    return served.fleet.coordinator.run_state.model.round


def restarted(served: Served) -> Served:
    """The same fleet with another process of its coordinator."""
    restart(served.fleet)
    return Served(served.fleet)


def test_a_second_run_is_equal_to_the_first_and_one_from_its_model_is_not(served: Served) -> None:
    models = []
    for start in ("zero-shot", "zero-shot", "last"):
        run = served.finish()
        models.append(served.fleet.journal.rounds.newest_model(run).payload)
        served.done("start", start=start)
    models.append(served.fleet.journal.rounds.newest_model(served.finish()).payload)
    assert models[0] == models[1] == models[2]
    assert models[3] != models[0]


def test_each_run_has_a_later_epoch_and_every_device_takes_part(served: Served) -> None:
    epochs = []
    for _ in range(3):
        run = served.finish()
        epochs.append(served.server.coordinator.epoch)
        assert set(served.fleet.journal.contributions.kept(run, PLAN.rounds)) == {"cam-0", "cam-1"}
        served.done("start")
    assert epochs == sorted(set(epochs))


def test_a_run_takes_the_settings_that_are_in_fleet_toml_then(served: Served) -> None:
    served.finish()
    served.plan = replace(PLAN, rounds=1)
    served.done("start")
    served.finish()
    assert closed(served) == 1
    served.plan = replace(PLAN, method="fedklip")
    assert "did you mean 'fedclip'" in served.refused("start")
    served.plan = replace(PLAN, method="linear", options={})
    assert "has another method (fedclip)" in served.refused("start", start="last")
    assert "has no run 'run-0'" in served.refused("start", start="run-0")


def test_only_one_run_is_under_way(served: Served) -> None:
    assert "is under way (0 of 3 rounds closed)" in served.refused("start")
    served.finish()
    for command, arguments in (
        ("pause", {}),
        ("resume", {}),
        ("close", {}),
        ("abandon", {}),
        ("extend", {"rounds": 9}),
    ):
        assert "is done; start the next run with" in served.refused(command, **arguments)


@pytest.mark.parametrize("restarts", [False, True])
def test_a_paused_run_opens_no_round_until_it_goes_on(served: Served, restarts: bool) -> None:
    until(served.fleet, lambda: closed(served) == 1)
    served.done("pause")
    assert "is paused; `fedclip-edge run resume`" in served.refused("pause")
    if restarts:
        served = restarted(served)
    for _ in range(800):
        served.step()
    assert (state(served.fleet).phase, closed(served) < 3) == ("gathering", True)
    assert not state(served.fleet).left_out
    served.done("resume")
    assert "is not paused" in served.refused("resume")
    served.finish()
    assert closed(served) == 3


def test_a_round_closes_early_with_what_is_in(served: Served) -> None:
    fleet = served.fleet
    until(fleet, lambda: state(fleet).phase == "open")
    assert "round 1 of run-" in served.refused("close")
    fleet.sessions.pop("cam-1")  # it hangs
    until(fleet, lambda: len(state(fleet).kept) == 1)
    served.done("close")
    assert closed(served) == 1
    assert set(fleet.journal.contributions.kept(served.server.run.id, 1)) == {"cam-0"}
    assert "cam-1" not in state(fleet).missed


@pytest.mark.parametrize("restarts", [False, True])
def test_a_run_ends_with_the_model_of_its_last_closed_round(served: Served, restarts: bool) -> None:
    fleet = served.fleet
    until(fleet, lambda: state(fleet).phase == "open")
    assert "has no closed round" in served.refused("close", now=True)
    until(fleet, lambda: closed(served) == 1 and state(fleet).phase == "open")
    served.done("close", now=True)
    if restarts:
        served = restarted(served)
    assert state(served.fleet).phase == "final"
    run = served.finish()
    journal = served.fleet.journal
    found = model_file.read(model_file.path_of(journal.path, run))
    assert (found.model.round, journal.runs.course(run).state) == (1, "done")
    assert {report.round for report in journal.reports.all(run)} == {0, 1}
    served.done("start", start=run)
    served.finish()
    assert closed(served) == 3


def test_an_evaluation_that_never_ends_can_be_ended(served: Served) -> None:
    fleet = served.fleet
    until(fleet, lambda: closed(served) == 3 and state(fleet).phase == "final")
    assert "it waits for the evaluation" in served.refused("close")
    served.done("close", now=True)
    assert served.server.coordinator.finished


@pytest.mark.parametrize("restarts", [False, True])
def test_an_abandoned_run_is_over_at_once_and_has_no_file(served: Served, restarts: bool) -> None:
    until(served.fleet, lambda: closed(served) == 2)
    run = served.server.run.id
    served.done("abandon")
    if restarts:
        served = restarted(served)
    assert served.server.run.id == run
    assert served.server.coordinator.finished
    assert state(served.fleet).phase == "done"
    assert not model_file.path_of(served.fleet.journal.path, run).exists()
    assert served.fleet.journal.rounds.newest_model(run).round == 2
    served.done("start")
    served.finish()


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("at", ["gathering", "open"])
def test_a_run_gets_more_rounds_while_its_last_one_is_open(
    served: Served, at: str, restarts: bool, tmp_path: Path
) -> None:
    fleet = served.fleet
    until(fleet, lambda: closed(served) == 2)
    late = fleet.sessions.pop("cam-1")
    if at == "open":
        until(fleet, lambda: len(state(fleet).kept) == 1)
    served.done("extend", rounds=5)
    if restarts:
        served = restarted(served)
        assert served.server.coordinator.rounds.rounds == 5
    fleet.sessions["cam-1"] = late
    run = served.finish()
    assert (closed(served), served.server.run.plan.rounds) == (5, 5)
    longer = trained(tmp_path / "longer", replace(PLAN, rounds=5))
    expected = longer.fleet.journal.rounds.newest_model(longer.finish())
    assert served.fleet.journal.rounds.newest_model(run).payload == expected.payload


def test_rounds_can_be_taken_away_but_not_closed_ones(served: Served) -> None:
    until(served.fleet, lambda: closed(served) == 1)
    assert "give at least so many rounds" in served.refused("extend", rounds=1)
    served.done("extend", rounds=2)
    served.finish()
    assert closed(served) == 2


def test_a_method_of_one_round_gets_no_more(tmp_path: Path) -> None:
    served = trained(tmp_path / "gda", Plan("gda", rounds=1))
    assert "trains in a single round" in served.refused("extend", rounds=2)
    assert "expected 1 to 1000000" in served.refused("extend", rounds=0)
    served.finish()
    assert "computes its model anew" in served.refused("start", start="last")


def test_a_run_with_a_vote_gets_more_rounds_until_the_vote(tmp_path: Path) -> None:
    served = trained(tmp_path / "vote", replace(PLAN, rounds=1, vote="on"))
    served.done("extend", rounds=2)
    fleet = served.fleet
    until(fleet, lambda: closed(served) == 2)
    assert "the last round of run-" in served.refused("extend", rounds=3)
    served.finish()
    assert closed(served) == 3  # two rounds and the vote
    served.done("start", start="last")
    assert served.server.course.started_from != "zero-shot"
    served.finish()


def test_the_journal_names_who_changed_what_and_no_refused_command(served: Served) -> None:
    served.finish()
    served.done("start", start="last")
    served.refused("start")
    served.done("extend", rounds=4)
    found = [
        (a.user, a.command, json.loads(a.arguments)) for a in served.fleet.journal.actions.all()
    ]
    assert found == [
        ("operator", "start", {"start": "last"}),
        ("operator", "extend", {"rounds": 4}),
    ]


def test_a_muted_device_stays_muted_in_the_next_run(served: Served) -> None:
    served.finish()
    before = served.server.coordinator
    before._muted["cam-9"] = served.fleet.now + 60
    served.done("start")
    assert "cam-9" in served.server.coordinator._muted


def test_a_due_run_starts_once_the_last_one_is_over(served: Served) -> None:
    served.schedule = RunSchedule(new_pictures=1)
    served = Served(served.fleet, schedule=served.schedule)
    first = served.finish()
    for _ in range(20):
        served.step(starts=True)
    assert served.server.run.id == first
    served.server.coordinator.devices.pictures["cam-0"] += 1
    for _ in range(20):
        served.step(starts=True)
    assert served.server.run.id != first
    assert served.server.course.started_by == "schedule: 1 new pictures"


def test_an_error_in_fleet_toml_starts_no_run_and_is_said_once(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    served = Served(served.fleet, schedule=RunSchedule(every="1s"))
    first = served.finish()
    served.plan = replace(PLAN, method="fedklip")
    database = served.fleet.journal._database
    with database:
        database.execute("UPDATE run SET started_at = 0")
    for _ in range(40):
        served.step(starts=True)
    assert served.server.run.id == first
    assert capsys.readouterr().out.count("run_not_started") == 1
    served.plan = PLAN
    for _ in range(20):
        served.step(starts=True)
    assert served.server.run.id != first
