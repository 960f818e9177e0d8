"""SQLite opened one way: one schema and version a file, and commits that survive what they must.

Laws: a file of another schema or version is refused and not changed. In a durable file a commit is
on disk when it returns, but for those made under `unsynced`, which are there with the next one: a
killed process loses neither, a power cut the latter alone, in order and whole.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

Connection = sqlite3.Connection

# A payload is megabytes. In pages of 4 kB, SQLite's own, 2.5 MB cost 16 ms of a core; in these 5.
_PAGE_BYTES = 32 * 1024
# 8 MB of log, twice what it is with SQLite's own two numbers; the log is memory on a small disk.
_CHECKPOINT_PAGES = 256


@dataclass(frozen=True)
class Schema:
    """The tables of one kind of file."""

    version: int
    table: str  # every file of this kind has it, whatever its version
    script: str  # the statements that make the tables in an empty file


class OtherDatabaseError(Exception):
    """The file is the database of something else."""


class OtherVersionError(Exception):
    """The file is of another version of its schema."""

    def __init__(self, version: int) -> None:
        super().__init__(f"version {version}")
        self.version = version


def open_database(
    path: Path, schema: Schema, *, durable: bool = True, timeout_s: float = 1.0
) -> Connection:
    """A connection to a file of this schema, which is made where it is missing.

    A file that is not `durable` may lose its last commits in a power cut, and is whole all the
    same. A lock of another process is waited for up to `timeout_s`. Raises OtherDatabaseError,
    OtherVersionError, and sqlite3's errors where the disk refuses; nothing stays open then.
    """
    with ExitStack() as on_failure:
        database = sqlite3.connect(path, timeout=timeout_s)
        on_failure.callback(database.close)
        (version,) = database.execute("PRAGMA user_version").fetchone()
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        if tables and (schema.table,) not in tables:
            raise OtherDatabaseError
        if version != schema.version and (tables or version):
            raise OtherVersionError(version)
        _set_pragmas(database, durable=durable)
        if not tables:
            # One transaction: a killed process leaves all of the tables, or an empty file.
            database.executescript(
                f"BEGIN IMMEDIATE; {schema.script} PRAGMA user_version = {schema.version}; COMMIT;"
            )
        on_failure.pop_all()
    return database


@contextmanager
def unsynced(database: Connection) -> Iterator[None]:
    """The commits within are not waited for; outside a transaction."""
    database.execute("PRAGMA synchronous = NORMAL")
    try:
        yield
    finally:
        database.execute("PRAGMA synchronous = FULL")


@contextmanager
def errors_as(
    refused: Callable[[Exception], Exception],
    damaged: Callable[[Exception], Exception] | None = None,
) -> Iterator[None]:
    """Raise the caller's own errors in place of sqlite3's.

    `refused` makes the one for a disk that refuses (full, read-only, locked), `damaged` the one for
    a file that is damaged; without it `refused` makes both. A constraint that does not hold and a
    closed connection are the caller's mistakes: these errors pass unchanged.
    """
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except sqlite3.OperationalError as error:
        raise refused(error) from error
    except sqlite3.Error as error:
        raise (damaged or refused)(error) from error


def _set_pragmas(database: Connection, *, durable: bool) -> None:
    """Outside a transaction. A file that is there keeps its page size."""
    if not durable:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        return
    database.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")  # survives power loss, not only a crash
    database.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    # Debian's SQLite writes zeros over all that is deleted, and thereby every payload twice.
    database.execute("PRAGMA secure_delete = FAST")
