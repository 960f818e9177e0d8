"""SQLite files: versions, refusals, and commits that survive a power failure."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import system

from fedclip_edge.errors import DataError, DiskError
from fedclip_edge.storage.sqlite import (
    OtherDatabaseError,
    OtherVersionError,
    Schema,
    empty_log,
    errors_as,
    open_database,
    unsynced,
)

THINGS = Schema(3, "thing", "CREATE TABLE IF NOT EXISTS thing (name TEXT PRIMARY KEY);")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(open_database(tmp_path / "some.sqlite", THINGS)) as opened:
        yield opened


def value(database: sqlite3.Connection, pragma: str) -> object:
    return database.execute(f"PRAGMA {pragma}").fetchone()[0]


def test_every_commit_is_synced_into_a_log_of_bounded_size(database: sqlite3.Connection) -> None:
    assert value(database, "synchronous") == 2
    assert value(database, "journal_mode") == "wal"
    assert value(database, "page_size") == 32768
    log_bytes = 32768 * int(str(value(database, "wal_autocheckpoint")))
    assert log_bytes <= 8 * 2**20


def test_a_file_that_may_lose_its_last_commits_is_not_synced_at_each(tmp_path: Path) -> None:
    path = tmp_path / "some.sqlite"
    with contextlib.closing(open_database(path, THINGS, durable=False)) as database:
        assert value(database, "synchronous") == 1
        assert value(database, "journal_mode") == "wal"


def test_what_is_deleted_is_not_written_once_more(database: sqlite3.Connection) -> None:
    # FAST: overwrite with zeros only if it costs no extra write.
    assert value(database, "secure_delete") == 2


def test_unsynced_ends_with_its_block_also_when_that_fails(database: sqlite3.Connection) -> None:
    with unsynced(database):
        assert value(database, "synchronous") == 1
    assert value(database, "synchronous") == 2
    with pytest.raises(KeyError), unsynced(database):
        raise KeyError
    assert value(database, "synchronous") == 2


def write(path: Path, script: str) -> bytes:
    """Write a database as another program would; return the bytes of the file."""
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.executescript(script)
    return path.read_bytes()


def test_a_file_of_an_earlier_version_keeps_its_pages(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    write(path, THINGS.script + "INSERT INTO thing (name) VALUES ('kept'); PRAGMA user_version = 3")  # noqa: S608
    with contextlib.closing(open_database(path, THINGS)) as again:
        assert value(again, "page_size") == 4096
        assert again.execute("SELECT name FROM thing").fetchall() == [("kept",)]


def test_a_file_of_another_version_is_refused_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    before = write(path, f"{THINGS.script} PRAGMA user_version = 2;")
    with pytest.raises(OtherVersionError) as refused:
        open_database(path, THINGS)
    assert refused.value.version == 2
    assert path.read_bytes() == before


def test_the_database_of_something_else_is_refused_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    before = write(path, "CREATE TABLE song (name TEXT); PRAGMA user_version = 3;")
    with pytest.raises(OtherDatabaseError):
        open_database(path, THINGS)
    assert path.read_bytes() == before


def test_two_may_make_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "some.sqlite"
    with (
        contextlib.closing(open_database(path, THINGS)) as one,
        contextlib.closing(open_database(path, THINGS)) as other,
        one,
    ):
        one.execute("INSERT INTO thing VALUES ('a')")
        one.commit()
        assert other.execute("SELECT name FROM thing").fetchall() == [("a",)]


_OPENS = """
import sys
from pathlib import Path
from fedclip_edge.storage.sqlite import Schema, open_database
schema = Schema(3, "thing", "CREATE TABLE IF NOT EXISTS thing (name TEXT PRIMARY KEY);")
print("ready", flush=True)
for path in sys.stdin:
    open_database(Path(path.strip()), schema, durable=sys.argv[1] == "durable").close()
    print("opened", flush=True)
"""


@pytest.mark.parametrize("kind", ["durable", "not durable"])
def test_processes_that_make_the_same_file_at_once_wait_for_each_other(
    kind: str, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as ends:
        openers = [
            ends.enter_context(
                system.running(
                    [sys.executable, "-c", _OPENS, kind],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(4)
        ]
        assert [system.line_of(opener) for opener in openers] == ["ready"] * 4
        for number in range(60):
            for opener in openers:
                system.tell(opener, str(tmp_path / f"{number}.sqlite"))
            assert [system.line_of(opener) for opener in openers] == ["opened"] * 4


def test_a_file_that_stays_locked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedclip_edge.storage.sqlite._WAITS_FOR_A_LOCK_S", 0.1)
    path = tmp_path / "some.sqlite"
    write(path, f"{THINGS.script} PRAGMA user_version = 3;")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        for lock in ("BEGIN EXCLUSIVE", "BEGIN IMMEDIATE", "BEGIN; SELECT * FROM thing"):
            for statement in lock.split("; "):
                other.execute(statement).fetchall()
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                open_database(path, THINGS)
            other.execute("ROLLBACK")
    open_database(path, THINGS).close()


def translated(error: Exception) -> Exception:
    with (
        pytest.raises(Exception) as raised,  # noqa: PT011 - the point is which one it is
        errors_as(lambda e: DiskError(str(e)), lambda e: DataError(str(e))),
    ):
        raise error
    return raised.value


def test_a_disk_that_refuses_and_a_damaged_file_are_told_apart() -> None:
    assert isinstance(translated(sqlite3.OperationalError("disk full")), DiskError)
    assert isinstance(translated(sqlite3.DatabaseError("malformed")), DataError)


@pytest.mark.parametrize("error", [sqlite3.IntegrityError("x"), sqlite3.ProgrammingError("x")])
def test_the_callers_own_mistakes_pass_unchanged(error: Exception) -> None:
    assert translated(error) is error


def test_the_log_is_emptied_now_or_when_a_reader_has_ended(
    database: sqlite3.Connection, tmp_path: Path
) -> None:
    path = tmp_path / "some.sqlite"
    log = Path(f"{path}-wal")
    with contextlib.closing(sqlite3.connect(path, check_same_thread=False)) as reader:
        with database:
            database.execute("INSERT INTO thing VALUES ('a')")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM thing").fetchall()
        with database:
            database.execute("INSERT INTO thing VALUES ('b')")
        assert not empty_log(database)
        assert log.stat().st_size > 0
        # The reader ends while `empty_log` waits for it.
        ends = threading.Timer(0.2, reader.rollback)
        ends.start()
        assert empty_log(database, waits=True)
        ends.join()
        assert log.stat().st_size == 0
    assert value(database, "busy_timeout") == 30_000
