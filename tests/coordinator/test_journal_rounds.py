"""The closed rounds in a journal, and their models."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_scene import RUN, break_with, database, model, same, sha256_of

from fedclip_edge.coordinator.journal import Journal, open_journal
from fedclip_edge.errors import JournalError


def test_closing_a_round_adds_the_model_and_deletes_what_made_it(journal: Journal) -> None:
    journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1)
    journal.contributions.keep("run-1", 2, "cam-01", sha256_of(b"two"), b"two", 0.5, 1)
    assert journal.rounds.closed("run-1") == 0
    closed = model(1, b"next\0", b"moments")
    journal.rounds.close("run-1", closed)
    assert same(journal.rounds.newest_model("run-1"), closed)
    assert journal.rounds.closed("run-1") == 1
    rows = database(journal).execute("SELECT round, size_bytes FROM contribution").fetchall()
    assert rows == [(1, 3), (2, 3)]
    assert database(journal).execute("SELECT body FROM payload").fetchall() == [(b"two",)]
    assert list(journal.contributions.payloads("run-1", 2)) == [("cam-01", b"two")]
    # A counted contribution stays known after its payload is deleted.
    with pytest.raises(sqlite3.IntegrityError):
        journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1)


def test_a_round_cannot_close_twice(journal: Journal) -> None:
    journal.rounds.close("run-1", model(1, b"first"))
    with pytest.raises(sqlite3.IntegrityError):
        journal.rounds.close("run-1", model(1, b"second"))
    assert journal.rounds.newest_model("run-1").payload == b"first"


@pytest.mark.parametrize("statement", ["INSERT INTO model", "DELETE FROM payload"])
def test_closing_a_round_happens_whole_or_not_at_all(
    journal: Journal, path: Path, statement: str
) -> None:
    journal.contributions.keep("run-1", 1, "cam-01", sha256_of(b"one"), b"one", 0.5, 1)
    break_with(journal, statement, sqlite3.OperationalError("database or disk is full"))
    with pytest.raises(JournalError, match=r"journal\.sqlite cannot be written \(database or disk"):
        journal.rounds.close("run-1", model(1))
    for opened in (journal, open_journal(path)):
        assert opened.rounds.closed("run-1") == 0
        assert list(opened.contributions.payloads("run-1", 1)) == [("cam-01", b"one")]
    opened.close()


def test_a_bug_in_the_middle_changes_nothing_either(journal: Journal, path: Path) -> None:
    journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1)
    break_with(journal, "DELETE FROM payload", KeyError("no such thing"))
    with pytest.raises(KeyError):
        journal.rounds.close("run-1", model(1))
    again = open_journal(path)
    assert again.rounds.closed("run-1") == 0
    again.close()


@settings(max_examples=20, deadline=None)
@given(keep=st.integers(1, 5), rounds=st.integers(0, 8))
def test_a_run_keeps_its_newest_models(
    tmp_path_factory: pytest.TempPathFactory, keep: int, rounds: int
) -> None:
    journal = open_journal(tmp_path_factory.mktemp("journal") / "journal.sqlite", keep)
    for run in ("run-1", "run-2"):
        journal.runs.add(replace(RUN, id=run), model(0))
    for number in range(1, rounds + 1):
        journal.rounds.close("run-1", model(number, bytes([number])))
    kept = [(number,) for number in range(rounds + 1)][-keep:]
    query = "SELECT round FROM model WHERE run = ? ORDER BY round"
    assert database(journal).execute(query, ("run-1",)).fetchall() == kept
    assert same(journal.rounds.newest_model("run-2"), model(0))
    journal.close()


def test_the_pages_of_closed_rounds_are_used_again(journal: Journal) -> None:
    """A payload of 25 kB fits into a page of 32 kB, with no room for a second one."""
    pages = []
    for number in range(1, 31):
        for device in range(4):
            journal.contributions.keep(
                "run-1", number, f"cam-{device}", "a" * 64, bytes(25_000), 0.5, 1
            )
        journal.rounds.close("run-1", model(number, bytes(122_000)))
        pages.append(database(journal).execute("PRAGMA page_count").fetchone()[0])
    assert pages[-1] == pages[5]
