"""The runs in a journal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from journal_scene import RUN, model

from fedclip_edge.coordinator.journal import Journal, open_journal


def test_a_run_is_gone_on_with_until_it_is_finished(journal: Journal, path: Path) -> None:
    journal.runs.finish("run-1")
    assert journal.runs.unfinished() is None
    assert journal.runs.last() == RUN
    newer = replace(RUN, id="a-run")  # runs are ordered by age, not by name
    journal.runs.add(newer, model(0))
    assert journal.runs.unfinished() == journal.runs.last() == newer
    again = open_journal(path)
    assert again.runs.unfinished() == newer
    again.close()


def test_runs_are_there_oldest_first(journal: Journal) -> None:
    assert journal.runs.all() == (RUN,)
    journal.runs.add(replace(RUN, id="run-0"), model(0))
    assert [run.id for run in journal.runs.all()] == ["run-1", "run-0"]


def test_an_empty_journal_has_no_run(path: Path) -> None:
    journal = open_journal(path)
    assert journal.runs.unfinished() is None
    assert journal.runs.last() is None
    journal.close()
