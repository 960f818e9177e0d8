"""A cache of features on disk, so that each picture is encoded only once.

Laws:

- A feature is found only under the picture hash and the feature key that it was stored with.
- A `put` is stored completely or not at all, so a killed process resumes after its last batch.
- A feature that is not the one that was stored is deleted and counted, never returned.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np

from fedclip_edge.errors import DataError, DiskError
from fedclip_edge.records import F32
from fedclip_edge.storage.sqlite import (
    Connection,
    OtherDatabaseError,
    OtherVersionError,
    Schema,
    errors_as,
    open_database,
)

_SCHEMA = Schema(
    version=2,
    table="feature",
    # IF NOT EXISTS: several processes may create the same file at once.
    script="CREATE TABLE IF NOT EXISTS feature (key TEXT NOT NULL, picture TEXT NOT NULL, "
    "vector BLOB NOT NULL, checksum INTEGER NOT NULL, PRIMARY KEY (key, picture)) WITHOUT ROWID;",
)
# Not in the schema: only a cache that several commands share is trimmed, an agent's is not.
_USED = (
    "CREATE TABLE IF NOT EXISTS used (key TEXT NOT NULL, picture TEXT NOT NULL, "
    "day INTEGER NOT NULL, PRIMARY KEY (key, picture)) WITHOUT ROWID"
)
_ASKED = 500  # old versions of SQLite allow 999 variables in one statement


class FeatureCache:
    """Features in one file. Several processes may use it at once; in each, only one thread."""

    def __init__(self, path: Path) -> None:
        """Open the file, or create it.

        Raises DataError if the file is not a feature cache of this version, is damaged, or cannot
        be read or written.
        """
        self.path = path
        self.damaged = 0  # features that `get` found to be damaged, and deleted
        self._db = _open(path)

    def get(self, hashes: Sequence[str], feature_key: str) -> dict[str, F32]:
        """Return the cached raw features, float32 (D,) each, by picture hash.

        The result leaves out pictures that are not cached. Features whose checksum is wrong are
        deleted and added to `damaged`. Raises DataError if the file is damaged otherwise, or cannot
        be read.
        """
        found: dict[str, F32] = {}
        damaged: list[tuple[str, str]] = []
        with _errors_of(self.path):
            for start in range(0, len(hashes), _ASKED):
                some = hashes[start : start + _ASKED]
                marks = ",".join("?" * len(some))
                rows = self._db.execute(
                    "SELECT picture, vector, checksum FROM feature "  # noqa: S608 - only question marks
                    f"WHERE key = ? AND picture IN ({marks})",
                    (feature_key, *some),
                )
                for picture, vector, checksum in rows:
                    is_whole = isinstance(vector, bytes) and (
                        _checksum(feature_key, picture, vector) == checksum
                    )
                    if is_whole:
                        found[picture] = np.frombuffer(vector, "<f4").astype(np.float32)
                    else:
                        damaged.append((feature_key, picture))
            if damaged:
                with self._db:
                    self._db.executemany(
                        "DELETE FROM feature WHERE key = ? AND picture = ?", damaged
                    )
        self.damaged += len(damaged)
        return found

    def put(self, features: Mapping[str, F32], feature_key: str) -> None:
        """Store raw features, float32 (D,) each, by picture hash, in one transaction.

        A feature that is already stored is kept. Raises DataError if the file is damaged or cannot
        be written.
        """
        rows = []
        for picture, vector in features.items():
            content = np.ascontiguousarray(vector, "<f4").tobytes()
            rows.append((feature_key, picture, content, _checksum(feature_key, picture, content)))
        with _errors_of(self.path), self._db:
            self._db.executemany("INSERT OR IGNORE INTO feature VALUES (?, ?, ?, ?)", rows)

    def forget(self, hashes: Sequence[str]) -> None:
        """Delete the features of these pictures under every feature key; raises DataError as `put`.

        The file does not shrink, but what is free in it is used again.
        """
        with _errors_of(self.path), self._db:
            key = self._next_key("")
            while key is not None:
                self._db.executemany(
                    "DELETE FROM feature WHERE key = ? AND picture = ?",
                    [(key, picture) for picture in hashes],
                )
                key = self._next_key(key)

    def note_use(self, hashes: Iterable[str], feature_key: str, day: int) -> None:
        """Remember the day on which these features were used last, for `trim`.

        Only a cache that is trimmed needs this. Raises DataError like `put`.
        """
        rows = [(feature_key, picture, day) for picture in hashes]
        with _errors_of(self.path), self._db:
            self._db.execute(_USED)
            self._db.executemany(
                "INSERT INTO used VALUES (?, ?, ?) ON CONFLICT (key, picture) DO UPDATE "
                "SET day = excluded.day WHERE used.day < excluded.day",
                rows,
            )

    def trim(self, most_bytes: int) -> int:
        """Delete the features whose last use is longest ago if the file holds over `most_bytes`.

        Afterwards it holds at most four fifths of that; the file does not shrink, but what is free
        in it is used again. Returns the number of deleted features. Raises DataError like `put`.
        """
        with _errors_of(self.path), self._db:
            size, pages, free = (
                self._db.execute(f"PRAGMA {what}").fetchone()[0]
                for what in ("page_size", "page_count", "freelist_count")
            )
            held = size * (pages - free)
            if held <= most_bytes:
                return 0
            self._db.execute(_USED)
            (count,) = self._db.execute("SELECT count(*) FROM feature").fetchone()
            surplus = math.ceil(count * (1 - 0.8 * most_bytes / held))
            oldest = (
                "SELECT key, picture FROM feature LEFT JOIN used USING (key, picture) "
                "ORDER BY coalesce(day, 0) LIMIT ?"
            )
            self._db.execute(
                f"DELETE FROM feature WHERE (key, picture) IN ({oldest})",  # noqa: S608 - constant
                (surplus,),
            )
            self._db.execute(
                "DELETE FROM used WHERE (key, picture) NOT IN (SELECT key, picture FROM feature)"
            )
            return int(surplus)

    def _next_key(self, key: str) -> str | None:
        """The first feature key after `key`, without reading all rows; None if there is none."""
        (found,) = self._db.execute("SELECT min(key) FROM feature WHERE key > ?", (key,)).fetchone()
        return None if found is None else str(found)

    def __len__(self) -> int:
        with _errors_of(self.path):
            (count,) = self._db.execute("SELECT count(*) FROM feature").fetchone()
        return int(count)

    def close(self) -> None:
        """Close the file; the cache cannot be used afterwards."""
        self._db.close()

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _checksum(feature_key: str, picture: str, vector: bytes) -> int:
    """CRC-32, which finds each change of up to 32 bits in a row."""
    return zlib.crc32(vector, zlib.crc32(f"{feature_key} {picture}".encode()))


def _open(path: Path) -> Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(
            f"the folder {path.parent} of the feature cache cannot be created: "
            f"{error.strerror or error}; free or repair the disk, or name another folder"
        ) from error
    try:
        with _errors_of(path):
            # After a power cut the last batches may be missing, but the file is intact.
            return open_database(path, _SCHEMA, durable=False)
    except OtherDatabaseError:
        raise DataError(
            f"{path} is not a feature cache but another database; move it away, or name another "
            "folder"
        ) from None
    except OtherVersionError:
        raise DataError(
            f"the feature cache {path} was made by another version of this program; "
            "delete it, and the features are computed again"
        ) from None


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into a DiskError, or a DataError for a damaged file."""

    def refused(error: Exception) -> DiskError:  # locked, read-only, disk full
        return DiskError(
            f"the feature cache {path} cannot be used: {error}; "
            "check the free disk space, the permissions and other programs that use the file"
        )

    def damaged(error: Exception) -> DataError:
        if "not a database" in str(error):  # it may be a file that the user needs
            return DataError(
                f"{path} is not a feature cache, or is badly damaged; name another file, or delete "
                "it if it is a cache, and the features are computed again"
            )
        return DataError(
            f"the feature cache {path} is damaged ({error}); "
            "delete it, and the features are computed again"
        )

    with errors_as(refused, damaged):
        yield
