"""The file of a journal: its transactions, its epoch, and the errors for a disk that fails.

Laws:
- One sync may cover several contributions and reports: those added between `hold` and `sync`. They
  are on disk once `sync` returns, and so are those that were added before any other write.
- Damage is found before it is used: `check` compares the tables with their indexes.
- A coordinator that claimed an epoch can write only until another one claims a later epoch.
  Otherwise two coordinators on one journal would have different sums for the same round.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from fedclip_edge.decoding import DecodeError, decode_table
from fedclip_edge.errors import JournalError, RunError
from fedclip_edge.storage.sqlite import (
    Connection,
    copy_database,
    cut_free_pages,
    empty_log,
    errors_as,
    overwriting,
    rewrite,
    unsynced,
)

T = TypeVar("T")
Insert = Callable[[Connection], object]

_ERASES_S = 0.2  # one step of erasing; rounds and commands wait so long
_ERASED_PAGES = 32  # free pages in one commit, 1 MB


class JournalFile:
    """An open file with the tables of a journal.

    The parts of a journal (journal_runs.py and others) read with `rows` and `one`, and write inside
    `transaction` or with `add`. Methods raise JournalError on a disk error, or if the file is
    damaged. Those that write raise RunError, and write nothing, if another process claimed a later
    epoch.
    """

    def __init__(self, path: Path, database: Connection) -> None:
        self.path = path
        self._database = database
        self.is_holding = False
        self._is_writing = False  # inside a transaction
        self._claimed: int | None = None  # the epoch under which this process writes
        self._held: list[Insert] = []  # what `sync` calls, in order

    @property
    def epoch(self) -> int:
        """The last epoch that any coordinator claimed; 0 if none did."""
        (value,) = self.one("SELECT value FROM epoch")
        if not isinstance(value, int):
            raise self.damaged("its epoch is not a number")
        return value

    def check(self) -> None:
        """Raise JournalError if a page, an index or a constraint of the file is damaged.

        Reads the whole file. The contents of models and contributions are compared with their
        SHA-256 when they are read.
        """
        # quick_check does not compare the indexes with their tables.
        found = self.rows("PRAGMA integrity_check(1)")
        if found != [("ok",)]:
            raise self.damaged(str(found[0][0]).splitlines()[-1])  # the first may be a heading

    def hold(self) -> None:
        """Let `add` wait in memory from now on, until `sync`.

        Nothing of it is in the file before: an open transaction would lock out another coordinator
        that takes over from a process that hangs.
        """
        self.is_holding = True

    def sync(self) -> None:
        """Put everything that was added since `hold` on disk, in one transaction."""
        self.is_holding = False
        held, self._held = self._held, []
        if held:
            with self.transaction() as database:
                for insert in held:
                    insert(database)

    def next_epoch(self, above: int = 0) -> int:
        """Claim an epoch above every earlier one of this journal, and above `above`.

        From then on, every write by a process that claimed an earlier epoch raises RunError.
        """
        with self.transaction() as database:
            epoch = max(self.epoch, above) + 1
            database.execute("UPDATE epoch SET value = ?", (epoch,))
        self._claimed = epoch
        return epoch

    def check_claim(self) -> None:
        """Raise RunError if another process claimed a later epoch."""
        if self._claimed is not None and self.epoch != self._claimed:
            raise RunError(
                f"another coordinator took over the journal {self.path} (epoch {self.epoch}); "
                "this one stops and has written nothing since then; run one coordinator per journal"
            )

    def copy(self, target: Path) -> None:
        """Copy the journal, in one state, to the new file `target`; others may write meanwhile."""
        with errors_as(self._unusable("copied"), self._malformed):
            copy_database(self._database, target)

    def close(self) -> None:
        self._database.close()

    def mark_for_rewriting(self) -> None:
        """Record that rows were deleted of which no byte may stay; call it inside a transaction."""
        self._database.execute("PRAGMA application_id = 1")

    @property
    def needs_rewriting(self) -> bool:
        """True if `rewrite` is still to be done."""
        return bool(self.one("PRAGMA application_id")[0])

    def erase_step(self) -> int:
        """Erase some of what SQLite has left of deleted rows, for a short time.

        Such bytes are in free pages and in the write-ahead log. Where SQLite moved a row within the
        file, bytes may also stay in the unused part of a page; only `rewrite` removes these.
        Returns 0 when it is done, and otherwise a number that gets smaller with each step, as long
        as no other process reads the file. Raises JournalError on a disk error.
        """
        until = time.monotonic() + _ERASES_S
        with errors_as(self._not_erased, self._malformed):
            while left := cut_free_pages(self._database, _ERASED_PAGES):
                if time.monotonic() >= until:
                    return left + 1
            return 0 if empty_log(self._database) else 1

    def rewrite(self) -> None:
        """Write the file again without a byte of deleted rows, and empty its write-ahead log.

        Everybody else waits meanwhile. Raises JournalError if the disk has less free space than the
        file needs, or if another process is reading it.
        """
        with errors_as(self._not_erased, self._malformed):
            rewrite(self._database)
            self._database.execute("PRAGMA application_id = 0")
            if not empty_log(self._database):
                raise self._not_erased("another process reads it")

    def empty_log(self) -> None:
        """Move everything from the write-ahead log into the file, outside a transaction."""
        with errors_as(self._unusable("written"), self._malformed):
            empty_log(self._database, waits=True)

    @contextmanager
    def transaction(self, *, overwrites: bool = False) -> Iterator[Connection]:
        """Put all writes inside the block into one transaction; if it raises, nothing is changed.

        The connection is for the statements. A transaction inside another one is a part of it. With
        `overwrites`, what is deleted inside the block is overwritten with zeros. Raises
        JournalError on a disk error, RunError if another process claimed a later epoch.
        """
        if self._is_writing:
            yield self._database
            return
        self.sync()
        erasing = overwriting(self._database) if overwrites else nullcontext()
        with erasing, errors_as(self._unusable("written"), self._malformed), self._database:
            self._database.execute("BEGIN IMMEDIATE")  # no other process writes after the check
            self.check_claim()
            self._is_writing = True
            try:
                yield self._database
            finally:
                self._is_writing = False

    def add(self, insert: Insert, *, synced: bool = True) -> None:
        """Call `insert` in a transaction of its own; after `hold`, only `sync` calls it.

        Without `synced`, the commit does not wait for the disk.
        """
        if self.is_holding:
            self._held.append(insert)
            return
        with nullcontext() if synced else unsynced(self._database), self.transaction() as database:
            insert(database)

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows that a query finds."""
        with errors_as(self._unusable("read"), self._malformed):
            return self._database.execute(query, values).fetchall()

    def one(self, query: str, *values: object) -> tuple[Any, ...]:
        """The first row that a query finds; JournalError if there is none."""
        rows = self.rows(query, *values)
        if not rows:
            raise self.damaged("a row is missing")
        return rows[0]

    def decode(self, cls: type[T], text: str) -> T:
        """Decode a record that is stored as JSON; raises JournalError if it is damaged."""
        try:
            return decode_table(cls, json.loads(text), "journal")
        except (DecodeError, ValueError) as error:
            raise JournalError(
                f"the journal {self.path} has a {cls.__name__} that cannot be read ({error}); "
                "finish its run with the version that started it, or use another journal"
            ) from error

    def damaged(self, what: str, whole: int | None = None) -> JournalError:
        """Return the error for damage that is described by `what`, with the next step.

        `whole` is the round of the newest usable model of the damaged run, if it has one.
        """
        return damaged_file(self.path, what, whole)

    def _unusable(self, what: str) -> Callable[[Exception], JournalError]:
        return lambda error: JournalError(
            f"the journal {self.path} cannot be {what} ({error}); free or repair the disk and "
            "start again; acknowledged contributions are in the journal"
        )

    def _not_erased(self, reason: object) -> JournalError:
        return JournalError(
            f"deleted data is still in the journal {self.path} ({reason}); free as much disk space "
            "as the file has, and end all processes that read it"
        )

    def _malformed(self, error: Exception) -> JournalError:
        return self.damaged(str(error))


def damaged_file(path: Path, what: str, whole: int | None = None) -> JournalError:
    """The error for a damaged file; `whole` is the round of its newest usable model."""
    if whole is None:
        remedy = (
            "its runs are lost unless you restore a copy of the file; to begin a new run, set "
            "'journal' to another file"
        )
    else:
        remedy = (
            f"the model of round {whole} is whole: add --from-round {whole} to `serve` to continue "
            "from it; the devices then train the later rounds again"
        )
    return JournalError(f"the journal {path} is damaged: {what}; {remedy}")
