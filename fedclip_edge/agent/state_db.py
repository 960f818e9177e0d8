"""The state of a device that survives a kill: one SQLite file in its state_dir.

Laws:
- An update is in the file before it is offered. It stays until the coordinator has it on disk or
  refuses it permanently, so an offer is always repeated with the same bytes.
- The residual of an update is used only after the coordinator has sent `kept` with that update's
  hash. Until then, the residual of the last kept update is used.
- Runs are stored separately: a pending update stays until its own run continues. The file holds
  only the newest RUNS runs.
- The epoch, run and round of the last manifest are stored, so that a replayed older manifest is
  refused, also after a restart.
- So are the statements that lead from the coordinator's key in agent.toml to its newest one.
- After a kill or a disk error, a change is in the file completely or not at all.
- Damage is found when the file is opened, or when the damaged part is read. A damaged update is
  never offered: it is trained again. `state_files.py` makes a damaged file anew.
- Two kinds of change are not synced immediately, because losing them in a power cut does no harm.
  One is the next round of a known run: a restarted device joins no round before its hello is
  answered. The other is the final answer to an update: the device offers the update again and gets
  the same answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from fedclip_edge import log
from fedclip_edge.agent.state_db_file import errors_of, open_state_file
from fedclip_edge.protocol.hand_over import HandOver
from fedclip_edge.protocol.message_parts import Address
from fedclip_edge.records import Arrays, in_order
from fedclip_edge.storage.sqlite import Connection, unsynced

RUNS = 4  # the open run, and earlier ones that may resume; each takes up to two models' bytes


@dataclass(frozen=True)
class RunPosition:
    """The position of the last accepted manifest: epoch, run and closed rounds."""

    epoch: int = 0
    run: str = ""
    closed: int = 0  # rounds of that run
    over: bool = False  # this device is done with the run, or the run was done before it joined

    def is_newer_than(self, other: RunPosition) -> bool:
        """True if `other` has an earlier epoch, or the same epoch and less progress.

        An epoch has one run. If `other` has the same epoch and another run, it comes from another
        journal. The two then have no order, and this position counts as newer. The coordinator of
        the other run detects the conflict in this device's hello and claims a later epoch.
        """
        if other.epoch != self.epoch or not self.run:
            return other.epoch < self.epoch
        return other.run != self.run or (other.closed, other.over) < (self.closed, self.over)


@dataclass(frozen=True, eq=False)
class PendingUpdate:
    """An update that is neither kept nor permanently refused, encoded as it is offered."""

    run: str
    round: int
    exchange: str  # hash of the exchange that it answers
    sha256: str  # of `payload`
    payload: bytes  # the contribution, in the plan's codec_up
    min_per_class: int  # the privacy floor of the device when it was made


def _nothing() -> None:
    """Nobody wants to know of a change."""


class StateDb:
    """The open state file.

    All methods raise DiskError if the file cannot be read or written, DamagedStateError if it is
    damaged. `keep_update` and `forget` are on disk when they return, and so is `move_position` to a
    new run or epoch. `on_change` is called after such a move, `add_hand_overs` and `move_broker`.
    """

    def __init__(self, path: Path, database: Connection) -> None:
        self.path = path
        self.on_change: Callable[[], object] = _nothing
        self._database = database
        self._last: tuple[str, str, Arrays] | None = None  # run, update's hash, its residual

    @property
    def position(self) -> RunPosition:
        """The position of the last accepted manifest."""
        epoch, run, closed, over = self._rows("SELECT epoch, run, closed, over FROM position")[0]
        return RunPosition(epoch, run, closed, bool(over))

    def move_position(self, position: RunPosition) -> None:
        """Store the position of the last accepted manifest."""
        known = self.position
        if position != known:
            is_next_round = (position.epoch, position.run) == (known.epoch, known.run)
            with self._writing(synced=not is_next_round):
                self._database.execute(
                    "UPDATE position SET epoch = ?, run = ?, closed = ?, over = ?",
                    (position.epoch, position.run, position.closed, position.over),
                )
            if not is_next_round:
                self.on_change()

    def keep_update(self, update: PendingUpdate, residual: Arrays) -> None:
        """Store an update until it is resolved, with its residual (protocol/codec.py), float32.

        It replaces the run's pending update. Runs beyond the newest RUNS are deleted.
        """
        with self._writing():
            self._database.execute("INSERT OR IGNORE INTO run (id) VALUES (?)", (update.run,))
            self._database.execute(
                "DELETE FROM run WHERE id <> ? AND number NOT IN "
                "(SELECT number FROM run ORDER BY number DESC LIMIT ?)",
                (update.run, RUNS),
            )
            self._clear(update.run)
            self._database.execute(
                "INSERT INTO parked VALUES (?, ?, ?, ?, ?, ?)",
                (
                    update.run,
                    update.round,
                    update.exchange,
                    update.sha256,
                    update.payload,
                    update.min_per_class,
                ),
            )
            # The coordinator may have kept the same bytes before, if its journal was restored from
            # an old copy. The residual stored at that time is not replaced.
            written = self._database.execute(
                "INSERT OR IGNORE INTO residual VALUES (?, ?, ?)",
                (update.run, update.sha256, safetensors.numpy.save(in_order(residual))),
            )
        self._last = (update.run, update.sha256, residual) if written.rowcount else None

    def pending_update(self, run: str) -> PendingUpdate | None:
        """The run's unresolved update, or None."""
        rows = self._rows(
            "SELECT run, round, exchange, sha256, body, min_per_class FROM parked WHERE run = ?",
            run,
        )
        if not rows:
            return None
        found = PendingUpdate(*rows[0])
        if hashlib.sha256(found.payload).hexdigest() != found.sha256:
            log.event("parked_update_damaged", file=self.path, run=run, round=found.round)
            with self._writing():
                self._clear(run)
            return None
        return found

    def kept_round(self, run: str) -> int:
        """The last round of the run to which the coordinator kept an update; 0 for none."""
        rows = self._rows("SELECT kept_round FROM run WHERE id = ?", run)
        return int(rows[0][0]) if rows else 0

    def residual(self, run: str) -> Arrays:
        """The residual of the run's last kept update, float32 by name; empty if none was kept."""
        rows = self._rows("SELECT kept FROM run WHERE id = ?", run)
        if rows and self._last is not None and self._last[:2] == (run, rows[0][0]):
            return self._last[2]  # the usual case: the newest update was kept
        query = (
            "SELECT terms FROM residual JOIN run ON run.id = run AND kept = sha256 WHERE run = ?"
        )
        rows = self._rows(query, run)
        found = _unpacked(rows[0][0]) if rows else {}
        if found is None:
            log.event("residual_damaged", file=self.path, run=run)
            return {}
        return found

    def resolve(self, run: str, sha256: str, *, kept: bool) -> None:
        """Resolve the pending update with this hash, as kept or as permanently refused.

        Does nothing if the run's pending update is another one, or is resolved already.
        """
        rows = self._rows("SELECT round FROM parked WHERE run = ? AND sha256 = ?", run, sha256)
        if rows:
            with self._writing(synced=False):
                if kept:
                    self._database.execute(
                        "UPDATE run SET kept = ?, kept_round = ? WHERE id = ?",
                        (sha256, rows[0][0], run),
                    )
                self._clear(run)

    def forget(self, run: str) -> None:
        """Delete everything that is stored for a run that is over."""
        if self._rows("SELECT id FROM run WHERE id = ?", run):
            with self._writing():
                self._database.execute("DELETE FROM run WHERE id = ?", (run,))

    def add_hand_overs(self, statements: Iterable[HandOver]) -> None:
        """Store statements about keys of the coordinator; they are on disk on return."""
        with self._writing():
            self._database.executemany(
                "INSERT OR REPLACE INTO hand_over VALUES (?, ?, ?)",
                [(one.old, one.new, one.signature) for one in statements],
            )
        self.on_change()

    def hand_overs(self) -> tuple[HandOver, ...]:
        """All statements that are stored; their signatures are checked when they are used."""
        found = []
        for row in self._rows("SELECT old, new, signature FROM hand_over"):
            with suppress(ValueError):  # damaged on disk; the coordinator shows it again
                found.append(HandOver(*row))
        return tuple(found)

    def move_broker(self, was: Address, now: Address) -> None:
        """Store that the broker, which agent.toml says is at `was`, is at `now`."""
        with self._writing():
            self._database.execute(
                "INSERT OR REPLACE INTO broker VALUES (1, ?, ?, ?, ?)",
                (was.host, was.port, now.host, now.port),
            )
        self.on_change()

    def broker(self, was: Address) -> Address | None:
        """The address that the broker at `was` moved to; None if it did not move."""
        query = "SELECT host, port FROM broker WHERE was_host = ? AND was_port = ?"
        rows = self._rows(query, was.host, was.port)
        return Address(*rows[0]) if rows else None

    def broker_move(self) -> tuple[Address, Address] | None:
        """The address that agent.toml had when the broker moved, and the new one."""
        rows = self._rows("SELECT was_host, was_port, host, port FROM broker")
        return (Address(*rows[0][:2]), Address(*rows[0][2:])) if rows else None

    def close(self) -> None:
        self._database.close()

    def _clear(self, run: str) -> None:
        """Delete the pending update, and all residuals except the last kept update's."""
        self._database.execute("DELETE FROM parked WHERE run = ?", (run,))
        self._database.execute(
            "DELETE FROM residual WHERE run = ? AND sha256 <> (SELECT kept FROM run WHERE id = ?)",
            (run, run),
        )

    @contextmanager
    def _writing(self, *, synced: bool = True) -> Iterator[None]:
        """Open a transaction; on a disk error nothing is changed."""
        waiting = nullcontext() if synced else unsynced(self._database)
        with errors_of(self.path, "written"), waiting, self._database:
            yield

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with errors_of(self.path, "read"):
            return self._database.execute(query, values).fetchall()


def open_state_db(path: Path) -> StateDb:
    """Open the file; create it if it is missing. Raises the errors of `open_state_file`."""
    return StateDb(path, open_state_file(path))


def _unpacked(terms: bytes) -> Arrays | None:
    """The arrays of a residual; None if they are damaged."""
    try:
        found: Arrays = safetensors.numpy.load(terms)
    except (SafetensorError, KeyError, TypeError, ValueError):
        return None
    return found if all(np.isfinite(term).all() for term in found.values()) else None
