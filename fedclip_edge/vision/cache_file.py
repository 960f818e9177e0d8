"""The database file of a feature cache: its tables, and its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedclip_edge.errors import DataError, DiskError
from fedclip_edge.storage.sqlite import (
    Connection,
    EmptyDatabaseError,
    OtherDatabaseError,
    OtherVersionError,
    Schema,
    errors_as,
    open_database,
    open_to_read,
)

_SCHEMA = Schema(
    version=3,
    table="feature",
    # IF NOT EXISTS: several processes may create the same file at once. `feature` only says in
    # which blocks to look for a picture.
    script="""
CREATE TABLE IF NOT EXISTS feature (
    picture TEXT NOT NULL, block INTEGER NOT NULL, PRIMARY KEY (picture, block)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS block (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, pictures TEXT NOT NULL, checksum INTEGER NOT NULL,
    vectors BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS block_of_key ON block (key);
""",
)


class UnusableCacheError(DataError):
    """The features in the file cannot be used: it is damaged, or of another version.

    Nothing in it is lost for good: its owner may delete it (`delete_cache_file`).
    """


def open_cache_file(path: Path) -> Connection:
    """Open the file, or create it.

    Raises UnusableCacheError if it is damaged or of another version of this program, DataError if
    it is another program's database, and DiskError if it cannot be read or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(
            f"the folder {path.parent} of the feature cache cannot be created: "
            f"{error.strerror or error}; free or repair the disk, or name another folder"
        ) from error
    with _opening(path):
        # After a power cut the last batches may be missing, but the file is intact.
        return open_database(path, _SCHEMA, durable=False)


def open_cache_to_read(path: Path) -> Connection:
    """Open an existing file without changing it; raises the errors of `open_cache_file`."""
    with _opening(path):
        return open_to_read(path, _SCHEMA)


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    """Turn the errors of opening a file into DataError and DiskError."""
    try:
        with errors_of(path):
            yield
    except (OtherDatabaseError, EmptyDatabaseError):
        raise DataError(
            f"{path} is not a feature cache but another database; move it away, or name another "
            "folder"
        ) from None
    except OtherVersionError:
        raise UnusableCacheError(
            f"the feature cache {path} was made by another version of this program; "
            "delete it, and the features are computed again"
        ) from None


def delete_cache_file(path: Path) -> None:
    """Delete the file and its log; raises DiskError."""
    try:
        for end in ("", "-wal", "-shm"):
            Path(f"{path}{end}").unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(
            f"the feature cache {path} has to be deleted, and cannot be: {error.strerror or error}; "
            "free or repair the disk"
        ) from error


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into a DiskError, or an UnusableCacheError."""

    def refused(error: Exception) -> DiskError:  # locked, read-only, disk full
        return DiskError(
            f"the feature cache {path} cannot be used: {error}; "
            "check the free disk space, the permissions and other programs that use the file"
        )

    def damaged(error: Exception) -> UnusableCacheError:
        if "not a database" in str(error):  # it may be a file that the user needs
            return UnusableCacheError(
                f"{path} is not a feature cache, or is badly damaged; name another file, or delete "
                "it if it is a cache, and the features are computed again"
            )
        return UnusableCacheError(
            f"the feature cache {path} is damaged ({error}); "
            "delete it, and the features are computed again"
        )

    with errors_as(refused, damaged):
        yield
