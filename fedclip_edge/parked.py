"""What a device must not forget when it is killed: one SQLite file in its state_dir.

Laws:
- An update is here before it is offered, and stays until the coordinator has it on disk or will
  not take it: what is offered again is the very same bytes.
- What an update leaves for the next one counts once the coordinator said `kept` with that update's
  hash; until then, and where it never does, what was left by the one before counts.
- Runs are apart: an update waits here for its own run to come back. The newest few runs stay.
- The last manifest's epoch, run and round are remembered: no replay of an older one is believed.
- Whatever is killed or refused by the disk, all of a change is here, or nothing of it.
- Not waited for is what a power cut may undo: the next round of a run that is here, since a
  device that was restarted joins none without an answer to its own process; and that an update is
  settled, since it is offered again and answered as before.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.numpy

from fedclip_edge import durable
from fedclip_edge.errors import ConfigError, DiskError
from fedclip_edge.records import Terms, in_order

RUNS = 4  # one goes on, and the others may come back; each may hold two models' worth of bytes
_SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE floor (
    only INTEGER PRIMARY KEY CHECK (only = 1), epoch INTEGER NOT NULL, run TEXT NOT NULL,
    closed INTEGER NOT NULL, over INTEGER NOT NULL
);
INSERT INTO floor VALUES (1, 0, '', 0, 0);
CREATE TABLE run (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
    kept_round INTEGER NOT NULL DEFAULT 0, kept TEXT NOT NULL DEFAULT ''
);
CREATE TABLE parked (
    run TEXT PRIMARY KEY REFERENCES run (id) ON DELETE CASCADE,
    round INTEGER NOT NULL, base TEXT NOT NULL, sha256 TEXT NOT NULL, body BLOB NOT NULL
);
CREATE TABLE carried (
    run TEXT NOT NULL REFERENCES run (id) ON DELETE CASCADE, sha256 TEXT NOT NULL,
    terms BLOB NOT NULL, PRIMARY KEY (run, sha256)
);
"""
_RESIDUAL, _STATE = "residual/", "state/"


@dataclass(frozen=True)
class Floor:
    """The last manifest that was believed."""

    epoch: int = 0
    run: str = ""
    closed: int = 0  # rounds of that run
    over: bool = False  # this device is done with that run, or it was done before it came

    def is_above(self, other: Floor) -> bool:
        """Whether `other` is older: of an earlier epoch, or from before in the same one.

        An epoch has one run: another in it is of another journal, and nobody knows which came first.
        Its coordinator hears of it in a hello, and takes a later epoch.
        """
        if other.epoch != self.epoch or not self.run:
            return other.epoch < self.epoch
        return other.run != self.run or (other.closed, other.over) < (self.closed, self.over)


@dataclass(frozen=True, eq=False)
class ParkedUpdate:
    """An update that nobody has answered for, in the bytes that are offered."""

    run: str
    round: int
    base: str  # version of the model it was made from
    sha256: str
    body: bytes


@dataclass(frozen=True, eq=False)
class Carried:
    """What an update leaves for the next one of its run."""

    residual: Terms = field(default_factory=dict)  # what the codec lost (messaging/codec.py)
    state: Terms = field(default_factory=dict)  # the method's own


class Parked:
    """The open file. What is parked and forgotten, and a new run or epoch, has been synced when
    the method returns; all that write raise DiskError.
    """

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path = path
        self._database = database
        self._left: tuple[str, str, Carried] | None = None  # run, update's hash: what it left

    @property
    def floor(self) -> Floor:
        epoch, run, closed, over = self._rows("SELECT epoch, run, closed, over FROM floor")[0]
        return Floor(epoch, run, closed, bool(over))

    def move_floor(self, floor: Floor) -> None:
        """`floor` is the last manifest's from here on."""
        known = self.floor
        if floor != known:
            is_next_round = (floor.epoch, floor.run) == (known.epoch, known.run)
            with self._writing(synced=not is_next_round):
                self._database.execute(
                    "UPDATE floor SET epoch = ?, run = ?, closed = ?, over = ?",
                    (floor.epoch, floor.run, floor.closed, floor.over),
                )

    def park(self, update: ParkedUpdate, left: Carried) -> None:
        """Keeps `update` until it is settled, and what it leaves until it counts or never will."""
        terms = {_RESIDUAL + name: term for name, term in left.residual.items()}
        terms |= {_STATE + name: term for name, term in left.state.items()}
        with self._writing():
            self._database.execute("INSERT OR IGNORE INTO run (id) VALUES (?)", (update.run,))
            self._database.execute(
                "DELETE FROM run WHERE id <> ? AND number NOT IN "
                "(SELECT number FROM run ORDER BY number DESC LIMIT ?)",
                (update.run, RUNS),
            )
            self._clear(update.run)
            self._database.execute(
                "INSERT INTO parked VALUES (?, ?, ?, ?, ?)",
                (update.run, update.round, update.base, update.sha256, update.body),
            )
            # Where these very bytes were kept before (the coordinator's journal is an old copy of
            # itself), they leave what they left then.
            written = self._database.execute(
                "INSERT OR IGNORE INTO carried VALUES (?, ?, ?)",
                (update.run, update.sha256, safetensors.numpy.save(in_order(terms))),
            )
        self._left = (update.run, update.sha256, left) if written.rowcount else None

    def update(self, run: str) -> ParkedUpdate | None:
        """The run's update that is not settled."""
        rows = self._rows("SELECT run, round, base, sha256, body FROM parked WHERE run = ?", run)
        return ParkedUpdate(*rows[0]) if rows else None

    def kept_round(self, run: str) -> int:
        """The last round of the run that the coordinator kept an update to; 0 for none."""
        rows = self._rows("SELECT kept_round FROM run WHERE id = ?", run)
        return int(rows[0][0]) if rows else 0

    def carried(self, run: str) -> Carried:
        """What the last kept update left; nothing where none was kept."""
        rows = self._rows("SELECT kept FROM run WHERE id = ?", run)
        if rows and self._left is not None and self._left[:2] == (run, rows[0][0]):
            return self._left[2]  # what was parked last is what counts, as a rule
        query = "SELECT terms FROM carried JOIN run ON run.id = run AND kept = sha256 WHERE run = ?"
        rows = self._rows(query, run)
        terms = safetensors.numpy.load(rows[0][0]) if rows else {}
        return Carried(_named(terms, _RESIDUAL), _named(terms, _STATE))

    def settle(self, run: str, sha256: str, *, kept: bool) -> None:
        """The coordinator has the parked update of that hash on disk, or will not take it.

        Nothing where the run's parked update is another, or settled already.
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
        """The run is over."""
        if self._rows("SELECT id FROM run WHERE id = ?", run):
            with self._writing():
                self._database.execute("DELETE FROM run WHERE id = ?", (run,))

    def close(self) -> None:
        self._database.close()

    def _clear(self, run: str) -> None:
        """Drops the parked update, and all that is carried but does not count."""
        self._database.execute("DELETE FROM parked WHERE run = ?", (run,))
        self._database.execute(
            "DELETE FROM carried WHERE run = ? AND sha256 <> (SELECT kept FROM run WHERE id = ?)",
            (run, run),
        )

    @contextmanager
    def _writing(self, *, synced: bool = True) -> Iterator[None]:
        """One transaction; changes nothing where the disk refuses."""
        waiting = nullcontext() if synced else durable.unsynced(self._database)
        try:
            with waiting, self._database:
                yield
        except sqlite3.DatabaseError as error:
            raise DiskError(
                f"{self.path} cannot be written ({error}); free or mend the disk and start the "
                "agent again: what the coordinator acknowledged is safe"
            ) from error

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise DiskError(f"{self.path} cannot be read ({error}); {_DELETE}") from error


_DELETE = "mend the disk, or delete the file: the update in it is trained again"


def open_parked(path: Path) -> Parked:
    """Opens the file, making it if missing.

    Raises ConfigError where it is no such file of this version, DiskError where the disk refuses.
    """
    try:
        database = sqlite3.connect(path, timeout=1.0)
    except sqlite3.Error as error:
        raise DiskError(f"{path} cannot be opened ({error}); mend the disk") from error
    try:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in (0, _SCHEMA_VERSION):
            raise ConfigError(
                f"{path} is of version {version}, this program writes {_SCHEMA_VERSION}; {_DELETE}"
            )
        durable.set_up(database)
        database.execute("PRAGMA foreign_keys = ON")
        if version == 0:
            script = f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;"
            database.executescript(script)
    except sqlite3.Error as error:
        database.close()
        raise DiskError(f"{path} cannot be used ({error}); {_DELETE}") from error
    except BaseException:
        database.close()
        raise
    return Parked(path, database)


def _named(terms: Terms, prefix: str) -> Terms:
    return {name.removeprefix(prefix): t for name, t in terms.items() if name.startswith(prefix)}
