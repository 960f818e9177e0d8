"""The database file of a device's state: its tables, and its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedclip_edge.errors import ConfigError, DiskError
from fedclip_edge.storage.sqlite import (
    Connection,
    OtherDatabaseError,
    OtherVersionError,
    Schema,
    damage,
    errors_as,
    open_database,
)

_SCHEMA = Schema(
    version=5,
    table="parked",
    script="""
CREATE TABLE position (
    only INTEGER PRIMARY KEY CHECK (only = 1), epoch INTEGER NOT NULL, run TEXT NOT NULL,
    closed INTEGER NOT NULL, over INTEGER NOT NULL
);
INSERT INTO position VALUES (1, 0, '', 0, 0);
CREATE TABLE run (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
    kept_round INTEGER NOT NULL DEFAULT 0, kept TEXT NOT NULL DEFAULT ''
);
CREATE TABLE parked (
    run TEXT PRIMARY KEY REFERENCES run (id) ON DELETE CASCADE,
    round INTEGER NOT NULL, exchange TEXT NOT NULL, sha256 TEXT NOT NULL, body BLOB NOT NULL,
    min_per_class INTEGER NOT NULL
);
CREATE TABLE residual (
    run TEXT NOT NULL REFERENCES run (id) ON DELETE CASCADE, sha256 TEXT NOT NULL,
    terms BLOB NOT NULL, PRIMARY KEY (run, sha256)
);
CREATE TABLE broker (
    only INTEGER PRIMARY KEY CHECK (only = 1), was_host TEXT NOT NULL, was_port INTEGER NOT NULL,
    host TEXT NOT NULL, port INTEGER NOT NULL
);
CREATE TABLE hand_over (old TEXT PRIMARY KEY, new TEXT NOT NULL, signature TEXT NOT NULL);
""",
)
_REMEDIES = {
    "opened": "free or repair the disk",
    "read": "free or repair the disk",
    "written": "free or repair the disk and restart the agent; acknowledged contributions are safe",
}


class DamagedStateError(DiskError):
    """The state file is damaged; the next start of the agent makes it anew (`state_files.py`)."""


class OtherStateVersionError(ConfigError):
    """The state file is of another version of this program."""


def open_state_file(path: Path) -> Connection:
    """Open the file; create it if it is missing.

    Raises OtherStateVersionError, or ConfigError for another program's database, without a change;
    DamagedStateError if it is damaged, DiskError on a disk error.
    """
    try:
        with errors_of(path, "opened"):
            database = open_database(path, _SCHEMA)
            _check_whole(database)
            database.execute("PRAGMA foreign_keys = ON")
    except OtherDatabaseError:
        raise ConfigError(
            f"{path} is a database of another program; set 'state_dir' to another folder"
        ) from None
    except OtherVersionError as error:
        raise OtherStateVersionError(
            f"{path} has format version {error.version}, this program uses {_SCHEMA.version}; "
            "delete the file; the device then trains its pending update again"
        ) from None
    return database


@contextmanager
def errors_of(path: Path, what: str) -> Iterator[None]:
    """Turn SQLite's errors into DiskError and DamagedStateError.

    `what` is "opened", "read" or "written".
    """

    def refused(error: Exception) -> DiskError:
        return DiskError(f"{path} cannot be {what} ({error}); {_REMEDIES[what]}")

    def damaged(error: Exception) -> DamagedStateError:
        return DamagedStateError(
            f"{path} is damaged ({error}); start the agent again, which makes the file anew"
        )

    with errors_as(refused, damaged):
        yield


def _check_whole(database: Connection) -> None:
    """Close the file and raise sqlite3's error for a damaged file if it is one.

    It has a few megabytes, of which SQLite would read a damaged page only later.
    """
    try:
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise damage(str(found).splitlines()[-1])
    except BaseException:
        database.close()
        raise
