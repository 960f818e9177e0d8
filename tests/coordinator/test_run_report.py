"""The report of a run, from the journal of a fleet in memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from coordinated_fleet import PLAN, RULES, device, joined
from in_memory import Fleet, features, nothing
from opened import opened

from fedclip_edge.coordinator import run_report
from fedclip_edge.coordinator.journal_tables import Run
from fedclip_edge.learning import methods
from fedclip_edge.records import Plan


def run_of(fleet: Fleet) -> Run:
    return fleet.coordinator.run_state.run


def evaluator(fleet: Fleet) -> None:
    test = features(8, 92, fleet.classes)
    fleet.start_device("cam-2", nothing(), test, roles=("evaluate",))


def summary(fleet: Fleet) -> dict[str, Any]:
    found = run_report.summarise(fleet.journal, run_of(fleet), "lab", None)
    decoded: dict[str, Any] = json.loads(json.dumps(found))
    return decoded


def test_the_figures_are_those_of_the_reports_and_of_the_contributions(tmp_path: Path) -> None:
    fleet = joined(tmp_path, 2)
    evaluator(fleet)
    fleet.run()
    found = summary(fleet)
    assert (found["state"], found["rounds_closed"], found["method"]) == ("done", 3, "fedclip")
    assert (list(found["devices"]), list(found["evaluators"])) == (["cam-0", "cam-1"], ["cam-2"])
    cam = found["devices"]["cam-1"]
    last = {report.device: report for report in fleet.journal.reports.all(run_of(fleet).id)}[
        "cam-1"
    ]
    assert last.round == 3
    assert cam["accuracy"] == dict(last.accuracy)
    assert len(cam["accuracy_by_round"]) == 4
    assert cam["pictures"] == {"train": last.train_pictures, "test": last.test_pictures}
    norms = [
        one[3] for one in fleet.journal.contributions.all(run_of(fleet).id) if one[1] == "cam-1"
    ]
    assert (cam["contributions"], cam["norm_largest"]) == (3, max(norms))
    assert cam["norm_by_round"] == {str(n): norm for n, norm in enumerate(norms, 1)}
    assert found["evaluators"]["cam-2"]["contributions"] == 0


def test_a_device_that_did_not_evaluate_the_last_model_has_no_accuracy(tmp_path: Path) -> None:
    fleet = joined(tmp_path, 2)
    evaluator(fleet)
    while fleet.coordinator.run_state.model.round < 2:
        fleet.step()
    del fleet.sessions["cam-2"]
    fleet.run()
    gone = summary(fleet)["evaluators"]["cam-2"]
    assert gone["accuracy"] == {}
    assert gone["accuracy_by_round"][0] is not None
    assert gone["accuracy_by_round"][3] is None


@pytest.mark.parametrize("method", ["gda", "auto"])
def test_the_decision_of_the_vote_is_in_the_report(tmp_path: Path, method: str) -> None:
    plan = methods.with_defaults(Plan(method, options={"min_per_class": 1}))
    fleet = opened(Fleet(tmp_path, plan, RULES))
    for number in range(2):
        fleet.start_device(
            f"cam-{number}",
            features(60, number, fleet.classes),
            features(8, 90 + number, fleet.classes),
            validation=features(40, 50 + number, fleet.classes),
            min_per_class=1,
        )
    fleet.run()
    vote = summary(fleet)["decision"]
    assert vote["pictures"] == 80
    assert vote["loss"] <= vote["zero_shot_loss"]
    assert 0 <= vote["correct"] <= 80
    assert vote["said"].startswith("80 validation pictures chose ")
    fleet.open_journal()
    assert summary(fleet)["decision"] == vote, "it is in the journal"


def test_a_vote_of_too_few_pictures_is_called_none(tmp_path: Path) -> None:
    fleet = opened(Fleet(tmp_path, methods.with_defaults(Plan("gda")), RULES))
    for number in range(2):
        device(fleet, number)
    fleet.run()
    vote = summary(fleet)["decision"]
    assert (vote["pictures"], vote["loss"]) == (0, None)
    assert vote["said"].startswith("There was no comparison: too few devices")


def test_the_files_are_beside_the_journal_and_hold_no_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = joined(tmp_path, 2)
    fleet.run()
    run = run_of(fleet)
    data, page = run_report.write_report(fleet.config, fleet.journal, run)
    assert (data, page) == tuple(
        tmp_path / "reports" / f"{run.id}.{kind}" for kind in ("json", "html")
    )
    assert json.loads(data.read_text()) == summary(fleet)
    html = page.read_text()
    assert f"{run.id} of the fleet lab" in html
    assert "<img" not in html
    assert "cam-1" in html
    assert f"report_written run={run.id} path={page}" in capsys.readouterr().out


def test_a_report_can_be_turned_off(tmp_path: Path) -> None:
    fleet = joined(tmp_path, 2)
    fleet.run()
    off = replace(fleet.config, reports="off")
    assert run_report.write_report(off, fleet.journal, run_of(fleet)) == ()
    assert not (tmp_path / "reports").exists()


def test_a_run_without_a_closed_round_has_no_report(tmp_path: Path) -> None:
    fleet = joined(tmp_path, 2)
    assert run_report.write_report(fleet.config, fleet.journal, run_of(fleet)) == ()


def test_a_folder_that_refuses_the_report_does_not_end_the_coordinator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = joined(tmp_path, 2)
    fleet.run()
    (tmp_path / "reports").write_text("a file in its place")
    assert run_report.write_report(fleet.config, fleet.journal, run_of(fleet)) == ()
    assert f"report_not_written run={run_of(fleet).id} reason=" in capsys.readouterr().out


def test_a_short_list_entry_has_the_means(tmp_path: Path) -> None:
    fleet = joined(tmp_path, 2)
    fleet.run()
    brief, whole = run_report.brief(fleet.journal, run_of(fleet)), summary(fleet)
    shared = [entry["accuracy"]["federated"] for entry in whole["devices"].values()]
    assert brief["accuracy"]["federated"] == pytest.approx(sum(shared) / 2)
    assert (brief["rounds_closed"], brief["rounds"], brief["devices"]) == (3, PLAN.rounds, 2)
    assert brief["started_at"] > 0
    assert brief["seconds"] is not None
