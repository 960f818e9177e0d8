"""The hashes of picture files that were read before, so that an unchanged file is not read again.

Laws:

- A hash is given again only if the file's size, times and inode are those at the last reading, and
  if the file had not changed within RECENT_S before that: a file system's clock may be too coarse
  to show a further change. A time that is hours ahead is that of a wrong clock, and no reason to
  read the file again. The device number is not compared: a share or a disk that is mounted
  may have another one, and then every picture would be read.
- An index with a file keeps its hashes across restarts. The file is only a cache: if it is damaged
  or has another version, it is made anew.
- `audit` reads the files again that were not read for the longest time, so a change that leaves no
  trace in size and times is found, too.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fedclip_edge import log
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
from fedclip_edge.vision.picture_bytes import parts_of

RECENT_S = 3.0  # FAT has a resolution of 2 s
_AHEAD_S = 3600.0  # of the clock of a share; a change after a wrong clock has another time

_SCHEMA = Schema(
    version=1,
    table="file",
    script="CREATE TABLE file (path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER "
    "NOT NULL, ctime_ns INTEGER NOT NULL, inode TEXT NOT NULL, hash TEXT NOT NULL, "
    "read_s INTEGER NOT NULL) WITHOUT ROWID; CREATE TABLE event (picture TEXT PRIMARY KEY, "
    "taken_s REAL NOT NULL, key TEXT NOT NULL) WITHOUT ROWID;",
)


class FileState(NamedTuple):
    """The properties of a file that show a change."""

    size: int  # bytes
    mtime_ns: int
    ctime_ns: int
    inode: int


_CHANGING = FileState(-1, 0, 0, 0)  # of a file that changed just before it was read: no file has it


class _Known(NamedTuple):
    state: FileState
    hash: str
    read_s: int  # Unix time of the last reading


class Event(NamedTuple):
    """The event of a picture, for `group_by = "seconds"`."""

    taken_s: float  # Unix time
    key: str  # of its group, in hex digits


def hash_file(path: Path) -> str:
    """Read a file and return its picture hash; raises the errors of `open_picture`."""
    digest = hashlib.sha256()
    for part in parts_of(path):  # a large file is not read into memory as a whole
        digest.update(part)
    return digest.hexdigest()


def state_of(path: str | Path) -> FileState:
    """The state of a file, or of the file that a link leads to; raises OSError."""
    found = os.stat(path)  # noqa: PTH116 - Path.stat costs more than the call, 50,000 times
    return FileState(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@dataclass(eq=False)
class PictureIndex:
    """The index of one device's folders. `clock` gives the Unix time in seconds.

    With `file`, call `open` before the first use. Without, the index lives as long as the object.
    """

    clock: Callable[[], float] = time.time
    file: Path | None = None
    events: Mapping[str, Event] = field(default_factory=dict)  # by picture hash
    _known: dict[str, _Known] = field(default_factory=dict)
    _unsaved: set[str] = field(default_factory=set)
    _to_audit: deque[str] = field(default_factory=deque)
    _db: Connection | None = None

    def open(self) -> None:
        """Read the file, or create it.

        Raises DataError if it is a database of another program, DiskError if it cannot be used.
        """
        if self.file is None:
            return
        try:
            self._read(self.file)
        except (OtherVersionError, _DamagedError) as error:
            self.close()
            log.event("picture_index_rebuilt", file=self.file, reason=str(error))
            for end in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    Path(f"{self.file}{end}").unlink()
            self._read(self.file)

    def close(self) -> None:
        """Close the file. What was not saved is read again after the next start."""
        if self._db is not None:
            self._db.close()
        self._db = None

    def hash_of(self, path: Path) -> str:
        """The picture hash of a file, which is read if it may have changed; raises OSError."""
        name = str(path)
        state = state_of(name)
        return self.known_hash(name, state) or self._hash(path, state)

    def known_hash(self, path: str, state: FileState) -> str | None:
        """The hash of a file if it was in this state at its last reading, else None."""
        known = self._known.get(path)
        return known.hash if known is not None and known.state == state else None

    def last_hash(self, path: str) -> str | None:
        """The hash of a file at its last reading, whatever its state is now."""
        known = self._known.get(path)
        return None if known is None else known.hash

    def came_at(self, path: str) -> float:
        """Unix time of a file's last change, as far as it is known, otherwise of its reading.

        It is 0 for a file that is not in the index.
        """
        known = self._known.get(path)
        return 0.0 if known is None else known.state.mtime_ns / 1e9 or float(known.read_s)

    def paths(self) -> Collection[str]:
        """The paths of all files in the index."""
        return self._known.keys()

    def files(self) -> Iterator[tuple[Path, str, FileState]]:
        """Yield path, hash and state of each file at its last reading."""
        for name, known in self._known.items():
            yield Path(name), known.hash, known.state

    def hashes(self) -> frozenset[str]:
        """The hashes of all files in the index."""
        return frozenset(known.hash for known in self._known.values())

    def keep_only(self, paths: Collection[str]) -> None:
        """Forget every other file; `paths` should be a set or the keys of a dict."""
        for name in [name for name in self._known if name not in paths]:
            del self._known[name]
            self._unsaved.add(name)

    def save(self) -> None:
        """Write what has changed, in one transaction; raises DiskError."""
        if self._db is None or not self._unsaved:
            return
        changed = [name for name in self._unsaved if name in self._known]
        with errors_as(self._refused), self._db:
            self._db.executemany(
                "DELETE FROM file WHERE path = ?",
                [(os.fsencode(name),) for name in self._unsaved if name not in self._known],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?, ?, ?, ?)",
                [_row(name, self._known[name]) for name in changed],
            )
        self._unsaved.clear()

    def keep_events(self, events: Mapping[str, Event]) -> None:
        """Replace `events`, also on disk; raises DiskError."""
        if self._db is not None:
            gone = [(picture,) for picture in self.events if picture not in events]
            changed = [
                (picture, *event)
                for picture, event in events.items()
                if self.events.get(picture) != event
            ]
            with errors_as(self._refused), self._db:
                self._db.executemany("DELETE FROM event WHERE picture = ?", gone)
                self._db.executemany("INSERT OR REPLACE INTO event VALUES (?, ?, ?)", changed)
        self.events = dict(events)

    def audit(self) -> Path | None:
        """Read the one file again that was not read for the longest time.

        Returns its path if it has another hash although its state is the same; the index then has
        the new hash. Returns None otherwise, also if the file cannot be read: a search will tell.
        """
        if not self._to_audit:
            order = sorted(self._known, key=lambda name: self._known[name].read_s)
            self._to_audit.extend(order)
        while self._to_audit:
            name = self._to_audit.popleft()
            before = self._known.get(name)
            if before is None:
                continue
            path = Path(name)
            with suppress(OSError):
                state = state_of(name)
                if state == before.state and self._hash(path, state) != before.hash:
                    return path
            return None
        return None

    def _hash(self, path: Path, state: FileState) -> str:
        now = self.clock()
        found = hash_file(path)
        ages_s = (now - time_ns / 1e9 for time_ns in (state.mtime_ns, state.ctime_ns))
        if any(-_AHEAD_S <= age_s < RECENT_S for age_s in ages_s):
            state = _CHANGING
        name = str(path)
        self._known[name] = _Known(state, found, int(now))
        self._unsaved.add(name)
        return found

    def _read(self, file: Path) -> None:
        def damaged(error: Exception) -> Exception:
            return _DamagedError(str(error))

        try:
            with errors_as(self._refused, damaged):
                self._db = open_database(file, _SCHEMA, durable=False)
                self.take(self._db)
        except OtherDatabaseError:
            raise DataError(
                f"{file} is not an index of pictures but another database; move it away"
            ) from None

    def take(self, database: Connection) -> None:
        """Take the hashes and events of an open file; raises sqlite3's errors, or _DamagedError."""
        files = database.execute("SELECT * FROM file")
        events = database.execute("SELECT * FROM event")
        try:
            self._known = {
                os.fsdecode(path): _Known(
                    FileState(size, mtime_ns, ctime_ns, int(inode)), _hex(found), int(read_s)
                )
                for path, size, mtime_ns, ctime_ns, inode, found, read_s in files
            }
            self.events = {
                picture: Event(float(taken_s), _hex(key)) for picture, taken_s, key in events
            }
        except (TypeError, ValueError) as error:  # SQLite does not notice a changed value
            self._known, self.events = {}, {}
            raise _DamagedError(str(error)) from error

    def _refused(self, error: Exception) -> DiskError:
        return DiskError(
            f"the index of pictures {self.file} cannot be used: {error}; check the free disk "
            "space, the permissions and other programs that use the file"
        )


def read_index(file: Path) -> PictureIndex:
    """An index with the hashes in this file, which is not changed; empty if it cannot be read."""
    index = PictureIndex()

    def unreadable(error: Exception) -> Exception:
        return _DamagedError(str(error))

    with (
        suppress(_DamagedError, OtherDatabaseError, OtherVersionError, EmptyDatabaseError),
        errors_as(unreadable),
        closing(open_to_read(file, _SCHEMA)) as database,
    ):
        index.take(database)
    return index


class _DamagedError(Exception):
    """The file is damaged."""


def _hex(text: str) -> str:
    """Return a text of hex digits as it is; raises ValueError or TypeError for anything else."""
    bytes.fromhex(text)
    return text


def _row(name: str, known: _Known) -> tuple[bytes, int, int, int, str, str, int]:
    size, mtime_ns, ctime_ns, inode = known.state
    # An inode may have 64 bits, and an integer of SQLite has 63.
    return os.fsencode(name), size, mtime_ns, ctime_ns, str(inode), known.hash, known.read_s
