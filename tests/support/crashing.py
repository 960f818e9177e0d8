"""A process that is gone at a chosen instruction, and what the disk keeps of its SQLite file.

The coordinator runs on the real `Journal`, a device on the real `StateDb`, each over a file. A kill is an exception that
nothing catches, raised before a chosen statement, message or commit; the files are copied as they
lie there at that moment, write-ahead log and all, and the restart gets the copy alone. SQLite's
own rollback, which a killed process never runs, so repairs nothing.

A commit is where a disk can be caught half-way, and SQLite hands over its pages there in one go:
so for a kill within it the commit is let run, and of the bytes it wrote only a first part is
kept. Before its sync ended any part may be there: all of it is a commit that nobody was told of,
none of it a write that never happened, and between them lies a torn page. Pages that a checkpoint
moved into the database are each there or not, once the log is whole.
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
    """The process is gone."""


@dataclass(eq=False)
class Fuse:
    """Burns at every point at which a process could be killed; nothing happens while `left` is 0."""

    left: int = 0
    on_disk: bool = False  # burns at the journal's points alone

    def burns_down(self, *, on_disk: bool) -> bool:
        """Whether this is the point at which the process is gone."""
        if self.left == 0 or (self.on_disk and not on_disk):
            return False
        self.left -= 1
        return self.left == 0

    def point(self, *, on_disk: bool = False) -> None:
        """A place between two instructions; raises Killed where the fuse has burnt down."""
        if self.burns_down(on_disk=on_disk):
            raise Killed


class CrashingConnection:
    """A file's connection, as `Journal` and `StateDb` use it, that a fuse is laid to."""

    def __init__(self, database: sqlite3.Connection, torn: Callable[[], None], fuse: Fuse) -> None:
        self._database = database
        self._torn = torn  # commits, and keeps a part of it
        self._fuse = fuse
        self.commits = 0
        self._killed = False

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        if self._killed or self._fuse.burns_down(on_disk=True):  # it tidies nothing up, either
            self._killed = True
            raise Killed
        return self._database.execute(*arguments)

    @property
    def writing(self) -> bool:
        """Whether something is written that is not committed."""
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
        if kind is not Killed:  # a killed process rolls nothing back
            self._database.__exit__(kind, error, trace)

    def close(self) -> None:
        self._database.close()


@dataclass(eq=False)
class Disk:
    """A process's folder; each of its lives has one of its own, copied from the last."""

    root: Path
    luck: random.Random
    name: str = "journal.sqlite"
    life: int = 0
    image: tuple[bytes, bytes] | None = None  # database and log, as a torn commit left them

    @property
    def folder(self) -> Path:
        return self.root / f"life-{self.life}"

    @property
    def path(self) -> Path:
        return self.folder / self.name

    def torn(self, database: sqlite3.Connection) -> None:
        """Lets the open transaction commit, and keeps what a kill within that could leave."""
        pages, log = self._read()
        database.commit()
        new_pages, new_log = self._read()
        end = self.luck.choice((0, len(new_log), self.luck.randrange(len(new_log) + 1)))
        if pages == new_pages or self.luck.random() < 0.5:
            self.image = pages, new_log[:end] + log[end:]
            return
        # A checkpoint: the log was whole and synced before it moved the first page.
        mixed = [
            self.luck.choice((pages, new_pages))[at : at + _PAGE_BYTES]
            if at < len(pages)
            else new_pages[at : at + _PAGE_BYTES]
            for at in range(0, len(new_pages), _PAGE_BYTES)
        ]
        self.image = b"".join(mixed), new_log

    def born(self, database: sqlite3.Connection) -> None:
        """A kill while the journal was made; raises Killed."""
        pages, log = self._read()
        self.image = pages, log[: self.luck.randrange(len(log) + 1)]
        database.close()
        raise Killed

    def copy(self) -> tuple[bytes, bytes]:
        """The file as it lies there, log and all."""
        return self._read()

    def replace(self, image: tuple[bytes, bytes]) -> None:
        """That copy takes the file's place, or nothing where it is empty; nobody has it open."""
        for path, content in zip((self.path, self._log), image, strict=True):
            path.unlink(missing_ok=True)
            if image[0]:
                path.write_bytes(content)

    def kill(self, journal: CrashingConnection | None) -> None:
        """What lies there now is all that the next life gets; of a torn commit, its image."""
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
