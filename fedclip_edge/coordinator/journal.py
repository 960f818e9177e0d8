"""The coordinator's journal: one SQLite file with everything that must survive a restart.

It holds runs, closed models, the open round's contributions, reports and pinned keys. SQLite keeps
a write-ahead log and syncs at every commit.

Laws:
- Nothing is acknowledged before it is in the journal.
- The first contribution per (run, round, device) is never replaced.
- Closing a round commits the model and deletes its contribution payloads in one transaction.
- A payload is read back as it was written, byte for byte. A model is stored as the bytes that were
  published and is never encoded again, because another version of the compression library may
  produce different bytes.
- A coordinator that claimed an epoch can write only until another one claims a later epoch.
  Otherwise two coordinators on one journal would have different sums for the same round.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from fedclip_edge.coordinator.journal_tables import SCHEMA, Run, StoredModel
from fedclip_edge.decoding import DecodeError, decode_table
from fedclip_edge.errors import ConfigError, JournalError, RunError
from fedclip_edge.protocol.report import Report
from fedclip_edge.records import Plan
from fedclip_edge.storage.sqlite import (
    Connection,
    OtherDatabaseError,
    OtherVersionError,
    errors_as,
    open_database,
    unsynced,
)

T = TypeVar("T")


class Journal:
    """An open journal. Every method that writes, except `add_report`, syncs before it returns.

    Methods raise JournalError on a disk error. Those that write raise RunError, and write nothing,
    if another process claimed a later epoch.
    """

    def __init__(self, path: Path, database: Connection) -> None:
        self.path = path
        self._database = database
        self._claimed: int | None = None  # the epoch under which this process writes

    @property
    def epoch(self) -> int:
        """The last epoch that any coordinator claimed; 0 if none did."""
        return int(self._one("SELECT value FROM epoch")[0])

    def next_epoch(self, above: int = 0) -> int:
        """Claim an epoch above every earlier one of this journal, and above `above`.

        From then on, every write by a process that claimed an earlier epoch raises RunError.
        """
        with self._writing():
            epoch = max(self.epoch, above) + 1
            self._database.execute("UPDATE epoch SET value = ?", (epoch,))
        self._claimed = epoch
        return epoch

    def check_claim(self) -> None:
        """Raise RunError if another process claimed a later epoch."""
        if self._claimed is not None and self.epoch != self._claimed:
            raise RunError(
                f"another coordinator took over the journal {self.path} (epoch {self.epoch}); "
                "this one stops and has written nothing since then; run one coordinator per journal"
            )

    def add_run(self, run: Run, initial: StoredModel) -> None:
        """Add a new run and its initial model."""
        with self._writing():
            self._database.execute(
                "INSERT INTO run VALUES (?, ?, ?, ?, 0)",
                (run.id, json.dumps(run.plan.to_json()), run.encoder_id, run.classes_digest),
            )
            self._add_model(run.id, initial)

    def unfinished_run(self) -> Run | None:
        """The newest run if it is not finished; None otherwise."""
        rows = self._rows("SELECT id, done FROM run ORDER BY rowid DESC LIMIT 1")
        return self.last_run() if rows and not rows[0][1] else None

    def last_run(self) -> Run | None:
        """The newest run, finished or not; None if the journal has no run."""
        rows = self._rows(
            "SELECT id, plan, encoder_id, classes_digest FROM run ORDER BY rowid DESC LIMIT 1"
        )
        return self._run(rows[0]) if rows else None

    def runs(self) -> tuple[Run, ...]:
        """Every run, oldest first."""
        rows = self._rows("SELECT id, plan, encoder_id, classes_digest FROM run ORDER BY rowid")
        return tuple(map(self._run, rows))

    def has_begun(self, run: str) -> bool:
        """True if a device has said hello in the run: its key is pinned."""
        return bool(self.keys(run))

    def finish(self, run: str) -> None:
        """Mark the run as finished."""
        with self._writing():
            self._database.execute("UPDATE run SET done = 1 WHERE id = ?", (run,))

    def newest_model(self, run: str) -> StoredModel:
        """The model of the last closed round, or the initial model before any round is closed."""
        return StoredModel(
            *self._one(
                "SELECT round, sha256, body, server_state, master FROM model WHERE run = ? "
                "ORDER BY round DESC LIMIT 1",
                run,
            )
        )

    def keep(self, run: str, round: int, device: str, sha256: str, payload: bytes) -> None:
        """Put a contribution on disk.

        Raises sqlite3.IntegrityError if the device already has one in this round.
        """
        with self._writing():
            self._database.execute(
                "INSERT INTO contribution VALUES (?, ?, ?, ?, ?, ?)",
                (run, round, device, sha256, len(payload), payload),
            )

    def kept(self, run: str, round: int) -> dict[str, str]:
        """The SHA-256 of each contribution to a round, open or closed, by device, sorted."""
        return dict(
            self._rows(
                "SELECT device, sha256 FROM contribution WHERE run = ? AND round = ? "
                "ORDER BY device",
                run,
                round,
            )
        )

    def has_kept(self, run: str, round: int, device: str, sha256: str) -> bool:
        """True if the contribution with this hash was kept; its round may be open or closed."""
        query = "SELECT sha256 FROM contribution WHERE run = ? AND round = ? AND device = ?"
        return self._rows(query, run, round, device) == [(sha256,)]

    def kept_bytes(self, run: str, round: int) -> int:
        """Total payload bytes of the contributions to a round, open or closed, as received."""
        query = "SELECT SUM(size_bytes) FROM contribution WHERE run = ? AND round = ?"
        return int(self._one(query, run, round)[0] or 0)

    def contributions(self, run: str, round: int) -> Iterator[bytes]:
        """Yield the payloads of an open round in the order of `kept`, one in memory at a time."""
        query = "SELECT body FROM contribution WHERE run = ? AND round = ? AND device = ?"
        for device in self.kept(run, round):
            yield self._one(query, run, round, device)[0]

    def close_round(self, run: str, model: StoredModel) -> None:
        """Commit the model of `model.round`, and delete the payloads that it was made of.

        Of the previous model only the float32 master is kept. Its published payload, which no
        device asks for any more, is deleted unless it is the float32 master itself.
        """
        with self._writing():
            self._add_model(run, model)
            self._database.execute(
                "UPDATE model SET body = x'' WHERE run = ? AND round = ? AND master IS NOT NULL",
                (run, model.round - 1),
            )
            self._database.execute(
                "UPDATE contribution SET body = NULL WHERE run = ? AND round = ?",
                (run, model.round),
            )

    def rounds_closed(self, run: str) -> int:
        """Number of closed rounds of the run."""
        return int(self._one("SELECT MAX(round) FROM model WHERE run = ?", run)[0])

    def add_report(self, report: Report) -> None:
        """Store a report; a later one by the same device on the same round replaces it.

        The commit is not synced: the device sends its report again after a restart of the
        coordinator.
        """
        with unsynced(self._database), self._writing():
            self._database.execute(
                "INSERT OR REPLACE INTO report VALUES (?, ?, ?, ?)",
                (report.run, report.round, report.device, json.dumps(report.to_json())),
            )

    def reports(self, run: str) -> tuple[Report, ...]:
        """Every report of the run, in the order of round and device."""
        rows = self._rows("SELECT report FROM report WHERE run = ? ORDER BY round, device", run)
        return tuple(self._decode(Report, text) for (text,) in rows)

    def pin_key(self, run: str, device: str, key: str) -> str:
        """Pin a device's key in this run unless one is pinned; returns the pinned key."""
        with self._writing():
            self._database.execute(
                "INSERT OR IGNORE INTO pinned_key VALUES (?, ?, ?)", (run, device, key)
            )
        return str(
            self._one("SELECT key FROM pinned_key WHERE run = ? AND device = ?", run, device)[0]
        )

    def keys(self, run: str) -> dict[str, str]:
        """Every pinned key of the run, by device."""
        return dict(self._rows("SELECT device, key FROM pinned_key WHERE run = ?", run))

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Open a transaction; if it raises, nothing is changed.

        Raises JournalError on a disk error, RunError if another process claimed a later epoch.
        """
        with errors_as(self._unusable("written")), self._database:
            self._database.execute("BEGIN IMMEDIATE")  # no other process writes after the check
            self.check_claim()
            yield

    def _unusable(self, what: str) -> Callable[[Exception], JournalError]:
        return lambda error: JournalError(
            f"the journal {self.path} cannot be {what} ({error}); free or repair the disk and "
            "start again; acknowledged contributions are in the journal"
        )

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with errors_as(self._unusable("read")):
            return self._database.execute(query, values).fetchall()

    def _add_model(self, run: str, model: StoredModel) -> None:
        self._database.execute(
            "INSERT INTO model VALUES (?, ?, ?, ?, ?, ?)",
            (run, model.round, model.sha256, model.payload, model.server_state, model.master),
        )

    def _run(self, row: tuple[Any, ...]) -> Run:
        identifier, plan, encoder_id, classes_digest = map(str, row)
        return Run(identifier, self._decode(Plan, plan), encoder_id, classes_digest)

    def _decode(self, cls: type[T], text: str) -> T:
        """Decode a record that is stored as JSON; raises JournalError if it is damaged."""
        try:
            return decode_table(cls, json.loads(text), "journal")
        except (DecodeError, ValueError) as error:
            raise JournalError(
                f"the journal {self.path} has a {cls.__name__} that cannot be read ({error}); "
                "finish its run with the version that started it, or use another journal"
            ) from error

    def _one(self, query: str, *values: object) -> tuple[Any, ...]:
        return self._rows(query, *values)[0]


def open_journal(path: Path) -> Journal:
    """Open the journal; create it if it is missing.

    Raises ConfigError, and changes nothing, if the file is not a journal of this version or cannot
    be written.
    """

    def refused(error: Exception) -> ConfigError:
        return ConfigError(
            f"the journal {path} cannot be opened ({error}); check its permissions, or set "
            "'journal' to another file"
        )

    try:
        with errors_as(refused):
            path.parent.mkdir(parents=True, exist_ok=True)
            return Journal(path, open_database(path, SCHEMA))
    except OSError as error:
        raise refused(error) from error
    except OtherDatabaseError:
        raise ConfigError(
            f"{path} is a database of another program; set 'journal' to another file"
        ) from None
    except OtherVersionError as error:
        raise ConfigError(
            f"the journal {path} has format version {error.version}, this program uses "
            f"{SCHEMA.version}; finish its run with the version that started it, or set 'journal' "
            "to another file"
        ) from None
