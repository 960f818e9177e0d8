"""How the files that must survive a power cut are set up."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedclip_edge.storage import sqlite


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(tmp_path / "some.sqlite")
    sqlite.set_up(opened)
    yield opened
    opened.close()


def value(database: sqlite3.Connection, pragma: str) -> object:
    return database.execute(f"PRAGMA {pragma}").fetchone()[0]


def test_every_commit_is_synced_into_a_log_of_bounded_size(database: sqlite3.Connection) -> None:
    assert value(database, "synchronous") == 2
    assert value(database, "journal_mode") == "wal"
    assert value(database, "page_size") == 32768
    log_bytes = 32768 * int(str(value(database, "wal_autocheckpoint")))
    assert log_bytes <= 8 * 2**20


def test_what_is_deleted_is_not_written_once_more(database: sqlite3.Connection) -> None:
    assert value(database, "secure_delete") == 2  # FAST: zeros only where they cost no write


def test_unsynced_ends_with_its_block_also_when_that_fails(database: sqlite3.Connection) -> None:
    with sqlite.unsynced(database):
        assert value(database, "synchronous") == 1
    assert value(database, "synchronous") == 2
    with pytest.raises(KeyError), sqlite.unsynced(database):
        raise KeyError
    assert value(database, "synchronous") == 2


def test_a_file_of_an_earlier_version_keeps_its_pages(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    old = sqlite3.connect(path)
    old.execute("CREATE TABLE thing (name TEXT)")
    old.execute("INSERT INTO thing VALUES ('kept')")
    old.commit()
    old.close()
    again = sqlite3.connect(path)
    sqlite.set_up(again)
    assert value(again, "page_size") == 4096
    assert again.execute("SELECT name FROM thing").fetchall() == [("kept",)]
    again.close()
