"""The reports in a journal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from drawn_records import report
from journal_scene import RUN, database

from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.errors import JournalError
from fedclip_edge.protocol.report import Report


def test_a_damaged_report_is_said(journal: Journal) -> None:
    journal.reports.add(report(run="run-1"))
    database(journal).execute("UPDATE report SET report = x'00' || substr(report, 2)")
    with pytest.raises(JournalError, match=r"is damaged: a report of run-1 cannot be read"):
        journal.reports.all("run-1")


def test_the_newest_report_of_each_device_is_found(journal: Journal) -> None:
    reports = [report(device=d, round=n) for d, n in (("cam-1", 1), ("cam-1", 2), ("cam-2", 1))]
    for one in reports:
        journal.reports.add(one)
    newest = journal.reports.newest(RUN.id)
    assert {device: one["round"] for device, one in newest.items()} == {"cam-1": 2, "cam-2": 1}
    assert Report(**newest["cam-2"]) == replace(reports[2], per_class={})
    assert list(journal.reports.as_json(RUN.id)) == [reports[n].to_json() for n in (0, 2, 1)]
