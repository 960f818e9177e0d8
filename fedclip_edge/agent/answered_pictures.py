"""The pictures of a device that need no answer any more, in a file of their own in state_dir.

Laws:

- A picture is noted once its answer is in the file of answers, or if it will never have one. So a
  picture that waits for its answer when the agent ends has it after the next start.
- After a kill between an answer and its note, the picture is answered again.
- Pictures that exist at the first start are noted without an answer. The first start is over when
  all of them are noted.
- A damaged file is made anew, and the next start then counts as the first one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.errors import DataError, DiskError
from fedclip_edge.storage.sqlite import (
    Connection,
    OtherDatabaseError,
    OtherVersionError,
    Schema,
    errors_as,
    open_database,
)

ANSWERED = "answered.sqlite"  # in state_dir
_AGAIN_S = 5.0  # between two attempts to write
_SCHEMA = Schema(
    version=1,
    table="answered",
    script="CREATE TABLE answered (picture TEXT PRIMARY KEY) WITHOUT ROWID; "
    "CREATE TABLE first_start (is_over INTEGER PRIMARY KEY CHECK (is_over = 1));",
)


@dataclass(eq=False)
class AnsweredPictures:
    """The notes of one device; call `open` before the first use."""

    file: Path
    is_first_start: bool = True
    _unsaved: dict[str, bool] = field(default_factory=dict)  # by hash, whether it is noted
    _is_over: bool = False  # the first start, and the file does not say so yet
    _next_at: float = -math.inf
    _db: Connection | None = None

    def open(self) -> None:
        """Open the file, or create it.

        Raises DataError if it is a database of another program, DiskError if it cannot be used.
        """
        try:
            self._open()
        except (OtherVersionError, _DamagedError) as error:
            self.close()
            log.event("answered_pictures_lost", file=self.file, reason=str(error))
            for end in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    Path(f"{self.file}{end}").unlink()
            self._open()

    def close(self) -> None:
        """Close the file. Pictures whose note is not saved are answered again."""
        if self._db is not None:
            self._db.close()
        self._db = None

    def settled(self) -> frozenset[str] | None:
        """The hashes in the file, which are not kept in memory; None if this is the first start.

        Raises DiskError.
        """
        assert self._db is not None
        if self.is_first_start:
            return None
        with errors_as(self._refused):
            rows = self._db.execute("SELECT picture FROM answered").fetchall()
        return frozenset(picture for (picture,) in rows)

    def note(self, pictures: Iterable[str]) -> None:
        """Note these hashes, from the next `save` on."""
        self._unsaved.update(dict.fromkeys(pictures, True))

    def forget(self, pictures: Iterable[str]) -> None:
        """Forget these hashes: if the pictures come again, they are new."""
        self._unsaved.update(dict.fromkeys(pictures, False))

    def end_first_start(self) -> None:
        """Note that all pictures of the first start are noted."""
        self._is_over, self.is_first_start = self.is_first_start, False

    def save(self, now: float) -> None:
        """Write what has changed; `now` is monotonic, in seconds.

        While the file cannot be written, the changes stay in memory. This is not logged: a disk
        that is full or read-only is reported by the file of answers and by the cache.
        """
        if self._db is None or not (self._unsaved or self._is_over) or now < self._next_at:
            return
        noted = [(picture,) for picture, is_noted in self._unsaved.items() if is_noted]
        gone = [(picture,) for picture, is_noted in self._unsaved.items() if not is_noted]
        try:
            with errors_as(self._refused), self._db:
                self._db.executemany("INSERT OR IGNORE INTO answered VALUES (?)", noted)
                self._db.executemany("DELETE FROM answered WHERE picture = ?", gone)
                if self._is_over:
                    self._db.execute("INSERT OR IGNORE INTO first_start VALUES (1)")
        except DiskError:
            self._next_at = now + _AGAIN_S
            return
        self._unsaved.clear()
        self._is_over = False

    def _open(self) -> None:
        def damaged(error: Exception) -> Exception:
            return _DamagedError(str(error))

        try:
            with errors_as(self._refused, damaged):
                self._db = open_database(self.file, _SCHEMA, durable=False)
                self._db.execute("SELECT count(*) FROM answered").fetchone()  # reads every page
                rows = self._db.execute("SELECT is_over FROM first_start").fetchall()
        except OtherDatabaseError:
            raise DataError(
                f"{self.file} is not a list of answered pictures but another database; move it away"
            ) from None
        self.is_first_start = not rows

    def _refused(self, error: Exception) -> DiskError:
        return DiskError(
            f"the list of answered pictures {self.file} cannot be used: {error}; check the free "
            "disk space, the permissions and other programs that use the file"
        )


class _DamagedError(Exception):
    """The file is damaged."""
