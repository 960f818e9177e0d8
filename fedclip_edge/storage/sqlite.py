"""SQLite databases with a checked schema and version, and with durable commits.

Laws:

- A file with another schema or version is refused and not changed.
- In a durable file, a commit is on disk when it returns. A commit inside `unsynced` is on disk
  together with the next synced commit.
- A killed process loses no commit. A power cut can lose only the newest unsynced commits, and never
  only a part of a commit.
- Several processes may open and make the same file at once; each waits for the others.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

Connection = sqlite3.Connection

# Payloads are several megabytes. Writing 2.5 MB takes 16 ms of processor time with SQLite's default
# pages of 4 kB, and 5 ms with this page size.
_PAGE_BYTES = 32 * 1024
# The write-ahead log is copied back when it reaches 8 MB, twice as much as with SQLite's default
# page size and checkpoint. A larger log would take too much space on a small disk.
_CHECKPOINT_PAGES = 256
_INCREMENTAL = 2  # of the pragma auto_vacuum: free pages stay until they are cut off
# Debian's SQLite overwrites deleted data with zeros by default: it writes every payload twice. With
# FAST it does so only inside pages that it writes anyway.
_NOT_OVERWRITING = "PRAGMA secure_delete = FAST"
# Longer than a slow disk takes for the largest transaction.
_WAITS_FOR_A_LOCK_S = 30.0


@dataclass(frozen=True)
class Schema:
    """Schema of one kind of file."""

    version: int
    table: str  # a table that every version of this file has
    # The statements that create the tables in an empty file, with IF NOT EXISTS if several
    # processes may make the same file at once.
    script: str


class OtherDatabaseError(Exception):
    """The file is a database of another program."""


class EmptyDatabaseError(Exception):
    """The file has no tables, not even those of another program."""


class OtherVersionError(Exception):
    """The file has another version of the schema."""

    def __init__(self, version: int) -> None:
        super().__init__(f"version {version}")
        self.version = version


def open_database(
    path: Path, schema: Schema, *, durable: bool = True, create: bool = True
) -> Connection:
    """Open a file of this schema; with `create`, also make a missing or empty one.

    A file that is not `durable` may lose its last commits in a power cut, but stays consistent.
    The connection waits up to 30 seconds for a lock of another process. Raises OtherDatabaseError
    if the file has other tables, OtherVersionError if its schema has another version,
    EmptyDatabaseError if it has no tables and `create` is false, and sqlite3's errors if the disk
    fails, the file is damaged or stays locked; the connection is then closed.
    """
    with ExitStack() as on_failure:
        database = sqlite3.connect(path, timeout=_WAITS_FOR_A_LOCK_S)
        on_failure.callback(database.close)
        has_tables = _check_schema(database, schema)
        if not has_tables and not create:
            raise EmptyDatabaseError
        if durable and not has_tables:
            database.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            database.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")  # to cut free pages off
        _set_pragmas(database, durable=durable)
        if not has_tables:
            # One transaction: after a kill the file has all tables or is empty.
            database.executescript(
                f"BEGIN IMMEDIATE; {schema.script} PRAGMA user_version = {schema.version}; COMMIT;"
            )
        on_failure.pop_all()
    return database


def open_to_read(path: Path, schema: Schema) -> Connection:
    """Open a file of this schema to read it only; no file is made or changed beside it.

    A process that writes to it may be at work. Raises OtherDatabaseError, OtherVersionError and
    EmptyDatabaseError as `open_database` does, and sqlite3's errors if the file is missing, cannot
    be read or is damaged; the connection is then closed.
    """
    # Without a write-ahead log nobody writes. Only then may SQLite ignore locks; otherwise it would
    # make a log and leave it behind.
    is_at_rest = not Path(f"{path}-wal").exists()
    address = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' * is_at_rest}"
    with ExitStack() as on_failure:
        database = sqlite3.connect(address, uri=True, timeout=_WAITS_FOR_A_LOCK_S)
        on_failure.callback(database.close)
        if not _check_schema(database, schema):
            raise EmptyDatabaseError
        on_failure.pop_all()
    return database


def copy_database(database: Connection, target: Path) -> None:
    """Copy the open `database`, in one state, to the new file `target`, and sync it.

    Other processes may write to the original meanwhile. Raises sqlite3's errors.
    """
    copy = sqlite3.connect(target)
    try:
        database.backup(copy)
    finally:
        copy.close()
    handle = os.open(target, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def unsynced(database: Connection) -> Iterator[None]:
    """Let commits inside the block return without waiting for the disk.

    Enter and leave it outside a transaction, and only for a durable file.
    """
    database.execute("PRAGMA synchronous = NORMAL")
    try:
        yield
    finally:
        database.execute("PRAGMA synchronous = FULL")


@contextmanager
def overwriting(database: Connection) -> Iterator[None]:
    """Let SQLite overwrite with zeros whatever is deleted inside the block, in the same commit."""
    database.execute("PRAGMA secure_delete = ON")
    try:
        yield
    finally:
        database.execute(_NOT_OVERWRITING)


def cut_free_pages(database: Connection, most: int) -> int:
    """Cut up to `most` free pages off a durable file, in one commit; returns how many are left.

    They hold bytes of what was deleted earlier. Pages in use move into their places. Call it
    outside a transaction. A file without the pragma for it, of an earlier version of this program,
    is rewritten as a whole.
    """
    (mode,) = database.execute("PRAGMA auto_vacuum").fetchone()
    if mode != _INCREMENTAL:
        rewrite(database)
    # `execute` would stop after the first page.
    database.executescript(f"PRAGMA incremental_vacuum({most})")
    (left,) = database.execute("PRAGMA freelist_count").fetchone()
    return int(left)


def rewrite(database: Connection) -> None:
    """Write the file again, row by row; the disk needs as much free space again.

    Only this removes what SQLite has left in the unused part of a page when it moved a row.
    """
    database.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")
    database.execute("VACUUM")


def empty_log(database: Connection, *, waits: bool = False) -> bool:
    """Copy the write-ahead log into the file and empty it; False while another process reads it.

    With `waits`, up to 30 seconds for that process. Call it outside a transaction.
    """
    (waits_ms,) = database.execute("PRAGMA busy_timeout").fetchone()
    if not waits:
        database.execute("PRAGMA busy_timeout = 0")
    try:
        (is_busy, *_) = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        database.execute(f"PRAGMA busy_timeout = {waits_ms}")
    return not is_busy


def damage(what: str) -> Exception:
    """The error that sqlite3 raises for a damaged file, for damage that the caller has found."""
    return sqlite3.DatabaseError(what)


@contextmanager
def errors_as(
    refused: Callable[[Exception], Exception],
    damaged: Callable[[Exception], Exception] | None = None,
) -> Iterator[None]:
    """Raise the caller's own errors instead of sqlite3's.

    `refused` makes the error for a file that cannot be used now (disk full, read-only, locked),
    `damaged` the error for a damaged file; without `damaged`, `refused` makes both.
    sqlite3.IntegrityError (a violated constraint) and sqlite3.ProgrammingError (a closed
    connection) are mistakes of the caller and are passed on unchanged.
    """
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except sqlite3.OperationalError as error:
        raise refused(error) from error
    except (sqlite3.Error, UnicodeDecodeError) as error:  # a message that quotes damaged text
        raise (damaged or refused)(error) from error


def _check_schema(database: Connection, schema: Schema) -> bool:
    """Return whether the file has tables; raise if they are not those of the schema."""
    version, tables = _version_and_tables(database)
    if tables and (schema.table,) not in tables:
        raise OtherDatabaseError
    if version != schema.version and (tables or version):
        raise OtherVersionError(version)
    return bool(tables)


def _version_and_tables(database: Connection) -> tuple[int, list[tuple[str]]]:
    """Return the version of the schema and the names of the tables.

    Both are read in one transaction: another process may be making the file.
    """
    database.execute("BEGIN")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    database.rollback()
    return version, tables


def _set_pragmas(database: Connection, *, durable: bool) -> None:
    """Set the pragmas of a connection, outside a transaction."""
    _use_write_ahead_log(database)
    if not durable:
        database.execute("PRAGMA synchronous = NORMAL")
        return
    database.execute("PRAGMA synchronous = FULL")  # commits survive a power cut, not only a kill
    database.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    database.execute(_NOT_OVERWRITING)


def _use_write_ahead_log(database: Connection) -> None:
    """Keep commits in a write-ahead log; wait while another process makes the same change."""
    deadline = time.monotonic() + _WAITS_FOR_A_LOCK_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # Python 3.10 has no error codes.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        else:
            return
        # This pragma fails at once if another process holds the lock; BEGIN IMMEDIATE waits for it.
        database.execute("BEGIN IMMEDIATE")
        database.rollback()
