"""A process that is killed at a chosen instruction, and the SQLite file that its disk then holds.

The coordinator uses the real `Journal` and a device the real `StateDb`, each with a file. A kill is
an exception that nothing catches. It is raised before a chosen statement, message or commit. The
files, including the write-ahead log, are copied as they are at that moment, and the restart gets
only the copy. So SQLite's own rollback, which a killed process never runs, repairs nothing.

A disk can be interrupted in the middle of a commit, where SQLite writes several pages at once. For
a kill within a commit, the commit is run, and only a first part of the bytes that it wrote is kept.
Before its sync has ended, any part may be there: the whole commit although nobody was told of it,
nothing, or a torn page in between. When a checkpoint moves pages into the database, each page may
be there or not, once the log is complete.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

_PAGE_BYTES = 4096


class Killed(BaseException):
    """The process was killed."""


@dataclass(eq=False)
class Fuse:
    """Counts the points at which a process can be killed; does nothing while `left` is 0."""

    left: int = 0
    on_disk: bool = False  # counts only the points of the journal

    def burns_down(self, *, on_disk: bool) -> bool:
        """Count a point; True if the process is killed here."""
        if self.left == 0 or (self.on_disk and not on_disk):
            return False
        self.left -= 1
        return self.left == 0

    def point(self, *, on_disk: bool = False) -> None:
        """Count a point between two instructions; raises Killed if the process is killed here."""
        if self.burns_down(on_disk=on_disk):
            raise Killed


class CrashingConnection:
    """The connection of a `Journal` or `StateDb`, with a fuse."""

    def __init__(self, database: sqlite3.Connection, torn: Callable[[], None], fuse: Fuse) -> None:
        self._database = database
        self._torn = torn  # commits, and keeps only a part of it
        self._fuse = fuse
        self.commits = 0
        self._killed = False

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        # A killed process does not clean up either.
        if self._killed or self._fuse.burns_down(on_disk=True):
            self._killed = True
            raise Killed
        return self._database.execute(*arguments)

    def executescript(self, script: str) -> sqlite3.Cursor:
        if self._killed or self._fuse.burns_down(on_disk=True):
            self._killed = True
            raise Killed
        return self._database.executescript(script)

    @property
    def in_transaction(self) -> bool:
        """True if there are uncommitted writes."""
        return self._database.in_transaction

    def __enter__(self) -> None:
        self._database.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.commits += 1
            if self._fuse.burns_down(on_disk=True):
                self._killed = True
                self._torn()
                raise Killed
        if kind is not Killed:  # a killed process does not roll back
            self._database.__exit__(kind, error, trace)

    def close(self) -> None:
        self._database.close()


@dataclass(eq=False)
class Disk:
    """The folder of a process; each restart gets a new one, copied from the previous one."""

    root: Path
    luck: random.Random
    name: str = "journal.sqlite"
    life: int = 0
    image: tuple[bytes, bytes] | None = None  # database and log after a torn commit

    @property
    def folder(self) -> Path:
        return self.root / f"life-{self.life}"

    @property
    def path(self) -> Path:
        return self.folder / self.name

    def torn(self, database: sqlite3.Connection) -> None:
        """Commit the open transaction and keep what a kill within the commit could leave."""
        pages, log = self._read()
        database.commit()
        new_pages, new_log = self._read()
        end = self.luck.choice((0, len(new_log), self.luck.randrange(len(new_log) + 1)))
        if pages == new_pages or self.luck.random() < 0.5:
            self.image = pages, new_log[:end] + log[end:]
            return
        # A checkpoint moves the first page only after the log is complete and synced.
        mixed = [
            self.luck.choice((pages, new_pages))[at : at + _PAGE_BYTES]
            if at < len(pages)
            else new_pages[at : at + _PAGE_BYTES]
            for at in range(0, len(new_pages), _PAGE_BYTES)
        ]
        self.image = b"".join(mixed), new_log

    def born(self, database: sqlite3.Connection) -> None:
        """Simulate a kill while the file is created; raises Killed."""
        pages, log = self._read()
        self.image = pages, log[: self.luck.randrange(len(log) + 1)]
        database.close()
        raise Killed

    def copy(self) -> tuple[bytes, bytes]:
        """The current contents of the database and its log."""
        return self._read()

    def replace(self, image: tuple[bytes, bytes]) -> None:
        """Replace the file by `image`, or delete it if `image` is empty; it must not be open."""
        for path, content in zip((self.path, self._log), image, strict=True):
            path.unlink(missing_ok=True)
            if image[0]:
                path.write_bytes(content)

    def kill(self, journal: CrashingConnection | None) -> None:
        """Keep for the next life only the current files, or the image of a torn commit."""
        pages, log = self.image or self._read()
        old, self.image = self.folder, None
        self.life += 1
        self.folder.mkdir()
        if pages:
            self.path.write_bytes(pages)
            self._log.write_bytes(log)
        if (old / "models").exists():
            (old / "models").rename(self.folder / "models")
        if journal is not None:
            journal.close()
        shutil.rmtree(old)

    @property
    def _log(self) -> Path:
        return self.path.with_name(self.path.name + "-wal")

    def _read(self) -> tuple[bytes, bytes]:
        return _content(self.path), _content(self._log)


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
