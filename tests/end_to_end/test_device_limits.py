"""Devices with limits in a fleet: the others' rounds do not wait for what a device never sends."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from in_memory import Fleet, class_texts, features
from opened import opened

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.records import Features, Plan

CLASSES = class_texts()


def one_of_each() -> Features:
    """One picture of each class: fewer than the default floor of a device."""
    many = features(60, 3, CLASSES)
    rows = [int(np.flatnonzero(many.labels == label)[0]) for label in range(len(CLASSES.names))]
    return Features(many.vectors[rows], many.labels[rows], many.encoder_id)


def test_rounds_go_on_with_devices_that_withhold_pictures_or_reports(tmp_path: Path) -> None:
    fleet = opened(
        Fleet(
            tmp_path,
            Plan("fedclip", rounds=2, vote="off"),
            RunRules(devices=2, quorum=1.0),
            CLASSES,
        )
    )
    some = features(40, 1, CLASSES)
    fleet.start_device("cam-a", some)
    fleet.start_device("cam-few", one_of_each(), some)
    fleet.start_device("cam-quiet", features(40, 2, CLASSES), some, reports=False)
    fleet.start_device("cam-silent", one_of_each(), some, reports=False)
    began = fleet.now
    fleet.run()
    assert fleet.now - began < 600.0, "no round has waited for its deadline"
    for _ in range(100):  # the last evaluation of a device that sends no report
        fleet.step()
    run = fleet.coordinator.run_state.run.id
    for closed in (1, 2):
        assert set(fleet.journal.contributions.kept(run, closed)) == {"cam-a", "cam-quiet"}
    assert {report.device for report in fleet.journal.reports.all(run)} == {"cam-a", "cam-few"}
    for name in ("cam-a", "cam-few", "cam-quiet", "cam-silent"):
        with (tmp_path / name / "predictions.csv").open(encoding="utf-8") as file:
            assert "federated" in next(csv.reader(file)), name
