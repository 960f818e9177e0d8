"""The file of a journal: transactions, epochs and failures of the disk."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drawn_records import report
from journal_scene import RUN, database, model, sha256_of

from fedclip_edge.coordinator.journal import Journal, open_journal
from fedclip_edge.errors import JournalError, RunError


def test_every_commit_is_synced(journal: Journal) -> None:
    assert database(journal).execute("PRAGMA synchronous").fetchone() == (2,)
    assert database(journal).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_full_disk_is_said_and_nothing_is_half_there(journal: Journal) -> None:
    journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1)
    (pages,) = database(journal).execute("PRAGMA page_count").fetchone()
    database(journal).execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalError, match="free or repair the disk and start again"):
        journal.contributions.keep("run-1", 1, "cam-02", "b" * 64, bytes(1 << 20), 0.5, 1)
    assert list(journal.contributions.kept("run-1", 1)) == ["cam-01"]


WRITES: list[Any] = [
    lambda journal: journal.next_epoch(),
    lambda journal: journal.runs.add(replace(RUN, id="run-2"), model(0)),
    lambda journal: journal.runs.finish("run-1"),
    lambda journal: journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1),
    lambda journal: journal.rounds.close("run-1", model(1)),
    lambda journal: journal.reports.add(report(run="run-1")),
    lambda journal: journal.devices.pin_key("run-1", "cam-01", "d" * 64),
]


@pytest.mark.parametrize("write", WRITES)
def test_a_write_that_the_database_refuses_is_a_store_error(journal: Journal, write: Any) -> None:
    database(journal).execute("PRAGMA query_only = ON")
    with pytest.raises(JournalError, match="readonly"):
        write(journal)
    database(journal).execute("PRAGMA query_only = OFF")
    write(journal)


def test_a_damaged_file_is_a_store_error(journal: Journal, path: Path) -> None:
    journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, bytes(100_000), 0.5, 1)
    (page_bytes,) = database(journal).execute("PRAGMA page_size").fetchone()
    journal.close()
    raw = bytearray(path.read_bytes())
    # Opening the file reads only the first page.
    raw[page_bytes:] = b"\xff" * (len(raw) - page_bytes)
    path.write_bytes(raw)
    damaged = open_journal(path)
    with pytest.raises(JournalError, match="malformed"):
        damaged.contributions.keep("run-1", 1, "cam-02", "b" * 64, b"two", 0.5, 1)
    damaged.close()


def test_what_is_added_while_the_journal_holds_is_on_disk_after_a_sync(
    journal: Journal, path: Path
) -> None:
    other = open_journal(path)
    journal.hold()
    journal.contributions.keep("run-1", 1, "cam-01", sha256_of(b"one"), b"one", 0.5, 1)
    journal.reports.add(report(run="run-1"))
    journal.contributions.keep("run-1", 1, "cam-02", sha256_of(b"two"), b"two", 0.5, 1)
    assert (other.contributions.kept("run-1", 1), other.reports.all("run-1")) == ({}, ())
    other.runs.finish("run-1")  # another process can write meanwhile
    journal.sync()
    assert list(other.contributions.kept("run-1", 1)) == ["cam-01", "cam-02"]
    assert other.reports.all("run-1") == (report(run="run-1"),)
    journal.contributions.keep(
        "run-1", 1, "cam-03", "c" * 64, b"three", 0.5, 1
    )  # does not wait any more
    assert list(other.contributions.kept("run-1", 1)) == ["cam-01", "cam-02", "cam-03"]
    other.close()


@pytest.mark.parametrize(
    "write",
    [
        lambda journal: journal.rounds.close("run-1", model(1)),
        lambda journal: journal.devices.pin_key("run-1", "cam-01", "d" * 64),
        lambda journal: journal.next_epoch(),
    ],
)
def test_any_other_write_puts_what_was_held_on_disk_first(
    journal: Journal, path: Path, write: Any
) -> None:
    journal.hold()
    journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1)
    write(journal)
    journal.close()
    again = open_journal(path)
    assert list(again.contributions.kept("run-1", 1)) == ["cam-01"]
    again.close()


def test_an_addition_that_fails_takes_all_that_was_held_with_it(
    journal: Journal, path: Path
) -> None:
    """The process ends then, and nothing of it was acknowledged."""
    journal.hold()
    journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1)
    journal.contributions.keep("run-1", 1, "cam-01", "b" * 64, b"two", 0.5, 1)
    with pytest.raises(sqlite3.IntegrityError):
        journal.sync()
    again = open_journal(path)
    assert again.contributions.kept("run-1", 1) == {}
    again.close()


@pytest.mark.parametrize(
    "write",
    [
        lambda journal: journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1),
        lambda journal: journal.reports.add(report(run="run-1")),
    ],
)
def test_who_was_taken_over_from_holds_nothing(journal: Journal, path: Path, write: Any) -> None:
    journal.next_epoch()
    other = open_journal(path)
    other.next_epoch()
    journal.hold()
    write(journal)
    with pytest.raises(RunError, match="took over"):
        journal.sync()
    assert (other.contributions.kept("run-1", 1), other.reports.all("run-1")) == ({}, ())
    other.close()


def test_epochs_grow_across_processes_and_above_any_that_was_seen(
    journal: Journal, path: Path
) -> None:
    assert [journal.next_epoch(), journal.next_epoch()] == [1, 2]
    assert journal.next_epoch(above=40) == 41
    assert journal.next_epoch(above=5) == 42
    again = open_journal(path)
    assert again.next_epoch() == 43
    again.close()


@pytest.mark.parametrize("write", WRITES)
def test_who_was_taken_over_from_writes_nothing_more(
    journal: Journal, path: Path, write: Any
) -> None:
    journal.next_epoch()
    other = open_journal(path)
    assert other.epoch == 1
    # Reading and writing do not claim the journal.
    other.contributions.keep("run-1", 2, "cam-02", "b" * 64, b"two", 0.5, 1)
    journal.contributions.keep("run-1", 2, "cam-03", "c" * 64, b"three", 0.5, 1)
    assert other.next_epoch() == 2
    content = list(database(other).iterdump())
    with pytest.raises(RunError, match=r"took over the journal .* \(epoch 2\)"):
        write(journal)
    assert list(database(other).iterdump()) == content
    write(other)
    other.close()


def test_a_report_alone_is_not_waited_for(journal: Journal) -> None:
    said: list[str] = []
    database(journal).set_trace_callback(said.append)
    journal.reports.add(report())
    assert any("synchronous = NORMAL" in statement for statement in said)
    assert database(journal).execute("PRAGMA synchronous").fetchone() == (2,)
    said.clear()
    journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"body", 0.5, 1)
    assert not any("synchronous" in statement for statement in said)


# Text as it is in the file, and the number of times: also in an index, if the table has one for it.
FLIPS = [
    (b"cam-01", b"cam-21", 2),  # the device of a contribution
    (b"cam-02" + b"d" * 64, b"cam-02" + b"d" * 63 + b"e", 2),  # a pinned key
    (b"c" * 64 + b"open", b"c" * 64 + b"opeo", 1),  # the state of the run
]


@pytest.mark.parametrize(("text", "flipped", "copies"), FLIPS)
def test_a_row_that_differs_from_its_index_or_its_values_is_found(
    journal: Journal, path: Path, text: bytes, flipped: bytes, copies: int
) -> None:
    journal.check()
    journal.contributions.keep("run-1", 1, "cam-01", "a" * 64, b"one", 0.5, 1)
    journal.devices.pin_key("run-1", "cam-02", "d" * 64)
    journal.close()
    raw = path.read_bytes()
    assert raw.count(text) == copies
    path.write_bytes(raw.replace(text, flipped, 1))
    damaged = open_journal(path)
    with pytest.raises(JournalError, match=r"is damaged: .*; its runs are lost"):
        damaged.check()
    damaged.close()


def test_damage_to_a_page_is_said_in_one_line(journal: Journal, path: Path) -> None:
    journal.actions.add("operator", "start", "{}")  # its table has the last page
    (page_bytes,) = database(journal).execute("PRAGMA page_size").fetchone()
    journal.close()
    raw = bytearray(path.read_bytes())
    raw[-page_bytes + 7] ^= 1  # number of fragmented bytes: sqlite.org/fileformat.html, 1.6
    path.write_bytes(raw)
    damaged = open_journal(path)
    with pytest.raises(JournalError, match=r"is damaged: (Fragmentation of|Page \d+)") as raised:
        damaged.check()
    assert "\n" not in str(raised.value)
    damaged.close()


def test_a_transaction_inside_another_one_is_a_part_of_it(journal: Journal) -> None:
    def fails() -> None:
        with journal.transaction():
            journal.devices.pin_key("run-1", "cam-01", "d" * 64)
            assert journal.devices.keys("run-1") == {"cam-01": "d" * 64}
            raise LookupError

    with pytest.raises(LookupError):
        fails()
    assert journal.devices.keys("run-1") == {}
    journal.devices.pin_key("run-1", "cam-02", "d" * 64)
    assert journal.devices.keys("run-1") == {"cam-02": "d" * 64}
