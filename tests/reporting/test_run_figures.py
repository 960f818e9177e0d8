"""Figures of one run from the reports of a device that counts since it was started."""

from __future__ import annotations

from typing import Any

from drawn_records import report

from fedclip_edge.reporting.run_figures import device_figures
from fedclip_edge.reporting.run_table import notes, table
from fedclip_edge.reporting.run_words import conclusion, remarks


def reported(round: int, up: int | None, **changes: Any) -> dict[str, Any]:
    return report(round=round, bytes_up=up, **changes).to_json()


def fleet_summary(count: int = 2, **changes: Any) -> dict[str, Any]:
    """A summary as `coordinator/run_report.py` makes it."""
    accuracy = {"zero_shot": 0.6, "federated": 0.5}
    entries = {
        f"cam-{n:02}": device_figures([reported(1, 10, accuracy=accuracy)], 1) for n in range(count)
    }
    whole = {"run": "run-1", "fleet": "lab", "method": "fedclip", "rounds": 1, "rounds_closed": 1}
    return {**whole, "devices": entries, "evaluators": {}, **changes}


def test_bytes_are_those_that_were_added_in_the_run() -> None:
    reports = [reported(0, 1100), reported(1, 1300), reported(2, 1500)]
    assert device_figures(reports, 2)["bytes_up_per_round"] == 750
    assert device_figures(reports, 2, reported(7, 1000))["bytes_up_per_round"] == 250


def test_an_agent_that_was_started_again_counts_from_zero() -> None:
    reports = [reported(1, 1200), reported(2, 300)]
    assert device_figures(reports, 2, reported(7, 1000))["bytes_up_per_round"] == 250


def test_a_count_that_is_unknown_once_is_unknown() -> None:
    assert device_figures([reported(1, None), reported(2, 300)], 2)["bytes_up_per_round"] is None
    assert device_figures([], 2)["bytes_up_per_round"] is None


def test_without_a_report_on_the_last_model_there_is_no_accuracy() -> None:
    found = device_figures([reported(1, 5)], 2)
    assert found["accuracy"] == {}
    assert found["accuracy_by_round"] == [None, 1.0, None]
    assert device_figures([reported(2, 5)], 2)["accuracy"]["federated"] == 1.0


def test_a_fleets_devices_are_named_by_their_ids() -> None:
    summary = fleet_summary()
    assert conclusion(summary) == (
        "1 round, 2 devices: the mean accuracy of the devices fell from 60.0 % to 50.0 %; no picture "
        "left its device."
    )
    assert remarks(summary)[0] == (
        "Training made the accuracy worse on cam-00 (\N{MINUS SIGN}10.0 points), cam-01 "
        "(\N{MINUS SIGN}10.0 points)."
    )
    assert "held out" not in notes(summary)


def test_many_devices_are_not_all_named_in_a_sentence() -> None:
    assert "cam-09 (\N{MINUS SIGN}10.0 points) and 990 more." in remarks(fleet_summary(1000))[0]


def test_devices_that_only_evaluate_are_marked() -> None:
    entry = device_figures([reported(1, 5, train_pictures=0)], 1)
    summary = fleet_summary(evaluators={"hall": entry})
    assert "that of hall, which only evaluates, rose from 50.0 % to 100.0 %" in conclusion(summary)
    assert "hall (evaluates)" in table(summary)
    assert "evaluates: the device only evaluates." in " ".join(notes(summary).split())
    assert "that of 2 devices that only evaluate rose" in conclusion(
        fleet_summary(evaluators={"hall": entry, "roof": entry})
    )


def test_a_device_that_sent_nothing_is_in_the_table() -> None:
    summary = fleet_summary()
    summary["devices"]["gone"] = device_figures([], 1)
    assert table(summary).splitlines()[-1].split() == ["gone", *["-"] * 5, "n/a", "n/a", *["-"] * 3]
