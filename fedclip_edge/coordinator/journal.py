"""The coordinator's journal: one SQLite file with everything that must survive a restart.

It holds runs, the newest closed models, the open round's contributions, reports and pinned keys.
SQLite keeps a write-ahead log and syncs at every commit.

Laws:
- Nothing is acknowledged before it is in the journal.
- One sync may cover several contributions and reports: those added between `hold` and `sync`. They
  are on disk once `sync` returns, and so are those that were added before any other write.
- The first contribution per (run, round, device) is never replaced.
- Closing a round commits the model and deletes its contribution payloads in one transaction, except
  those that may count again (retention.py). The rows without their payloads stay, so a lost answer
  can be repeated.
- A run under way keeps its newest `keep_models` models, a run that is over only its last one. So a
  round adds only its reports and one row for each contribution; the payloads that stay have at most
  `keep_sums_mb` in all.
- The journal has at most one run that is not over: the newest.
- A payload is read back as it was written, byte for byte. A model is stored as the bytes that were
  published and is never encoded again, because another version of the compression library may
  produce different bytes.
- A file that a new journal is made in appears complete or not at all. A file that exists already is
  never taken for a new journal.
- Damage is found before it is used: `check` compares the tables with their indexes, and each model
  and contribution that is read is compared with its SHA-256.
- A coordinator that claimed an epoch can write only until another one claims a later epoch.
  Otherwise two coordinators on one journal would have different sums for the same round.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator import retention
from fedclip_edge.coordinator.journal_tables import (
    SCHEMA,
    Action,
    Course,
    LastContribution,
    Origin,
    Run,
    RunPhase,
    Sent,
    StoredModel,
)
from fedclip_edge.decoding import DecodeError, decode_table
from fedclip_edge.errors import ConfigError, JournalError, RunError
from fedclip_edge.protocol.report import Report
from fedclip_edge.records import Plan
from fedclip_edge.storage import atomic
from fedclip_edge.storage.lock import locked_folder
from fedclip_edge.storage.sqlite import (
    Connection,
    EmptyDatabaseError,
    OtherDatabaseError,
    OtherVersionError,
    copy_database,
    cut_free_pages,
    empty_log,
    errors_as,
    open_database,
    open_to_read,
    overwriting,
    rewrite,
    unsynced,
)

T = TypeVar("T")

# A cast gives the same bytes also if damage turned a column's type into text.
_MODEL = (
    "SELECT round, sha256, CAST(body AS BLOB), CAST(server_state AS BLOB), CAST(master AS BLOB), "
    "rest_sha256 FROM model"
)
_RUN = "SELECT id, plan, encoder_id, classes_digest, rounds FROM run"
_ERASES_S = 0.2  # one step of erasing; rounds and commands wait so long
_ERASED_PAGES = 32  # free pages in one commit, 1 MB


class Journal:
    """An open journal. Every method that writes, except `add_report`, syncs before it returns.

    After `hold`, `keep` does not sync either, until `sync`.

    Methods raise JournalError on a disk error or if the file is damaged. Those that write raise
    RunError, and write nothing, if another process claimed a later epoch.
    """

    def __init__(
        self,
        path: Path,
        database: Connection,
        keep_models: int = FleetConfig.keep_models,
        keep_sums_mb: int = FleetConfig.keep_sums_mb,
    ) -> None:
        self.path = path
        self.keep_models = keep_models
        self.keep_sums_mb = keep_sums_mb
        self._database = database
        self._is_writing = False  # inside a transaction
        self._claimed: int | None = None  # the epoch under which this process writes
        self.is_holding = False
        self._held: list[Callable[[], object]] = []  # what `sync` adds, in order

    @property
    def epoch(self) -> int:
        """The last epoch that any coordinator claimed; 0 if none did."""
        (value,) = self._one("SELECT value FROM epoch")
        if not isinstance(value, int):
            raise self.damaged("its epoch is not a number")
        return value

    def check(self) -> None:
        """Raise JournalError if a page, an index or a constraint of the file is damaged.

        Reads the whole file. The contents of models and contributions are compared with their
        SHA-256 when they are read.
        """
        # quick_check does not compare the indexes with their tables.
        found = self._rows("PRAGMA integrity_check(1)")
        if found != [("ok",)]:
            raise self.damaged(str(found[0][0]).splitlines()[-1])  # the first may be a heading

    def hold(self) -> None:
        """Let `keep` and `add_report` wait in memory from now on, until `sync`.

        Nothing of it is in the file before: an open transaction would lock out another coordinator
        that takes over from a process that hangs.
        """
        self.is_holding = True

    def sync(self) -> None:
        """Put everything that was added since `hold` on disk, in one transaction."""
        self.is_holding = False
        held, self._held = self._held, []
        if held:
            with self._writing():
                for add in held:
                    add()

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

    def add_run(
        self,
        run: Run,
        initial: StoredModel,
        origin: Origin | None = None,
        abandons: str | None = None,
    ) -> None:
        """Add a new run and its initial model, in place of one that is held.

        The unfinished run `abandons` is marked as abandoned in the same transaction.

        They are moved from the write-ahead log into the file at once. If the log is damaged later,
        the run continues from an earlier state, instead of giving way to a new run.
        """
        origin = origin or Origin()
        with self._writing():
            if abandons is not None:
                self._end_run(abandons, "abandoned")
            held = "(SELECT id FROM run WHERE state = 'held')"
            for table in ("model", "report", "pinned_key", "forgotten"):
                self._database.execute(f"DELETE FROM {table} WHERE run IN {held}")  # noqa: S608
            self._database.execute("DELETE FROM run WHERE state = 'held'")
            self._database.execute(
                "INSERT INTO run (id, plan, encoder_id, classes_digest, state, started_at, "
                "started_by, started_from) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    run.id,
                    json.dumps(run.plan.to_json()),
                    run.encoder_id,
                    run.classes_digest,
                    "held" if origin.held else "open",
                    time.time(),
                    origin.by,
                    origin.model,
                ),
            )
            self._add_model(run.id, initial)
        with errors_as(self._unusable("written"), self._malformed):
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def add_model(self, run: str, model: StoredModel) -> None:
        """Add a model that a run lacks."""
        with self._writing():
            self._add_model(run, model)

    def unfinished_run(self) -> Run | None:
        """The newest run if it is not over; None otherwise."""
        run = self.last_run()
        return None if run is None or self.course(run.id).is_over else run

    def last_run(self) -> Run | None:
        """The newest run, finished or not; None if the journal has no run."""
        rows = self._rows(f"{_RUN} ORDER BY rowid DESC LIMIT 1")
        return self._run(rows[0]) if rows else None

    def runs(self) -> tuple[Run, ...]:
        """Every run, oldest first."""
        return tuple(map(self._run, self._rows(f"{_RUN} ORDER BY rowid")))

    def last_done_run(self) -> Run | None:
        """The newest run that is done; None if none is."""
        rows = self._rows(f"{_RUN} WHERE state = 'done' ORDER BY rowid DESC LIMIT 1")
        return self._run(rows[0]) if rows else None

    def course(self, run: str) -> Course:
        """The course of a run of this journal so far."""
        state, started_at, ended_at, by, model, paused, plan, next_rounds, ends_after = self._one(
            "SELECT state, started_at, ended_at, started_by, started_from, paused, plan, "
            "next_rounds, ends_after FROM run WHERE id = ?",
            run,
        )
        begun_rounds = self._decode(Plan, plan).rounds
        return Course(
            state=state,
            started_at=started_at,
            ended_at=ended_at,
            started_by=by,
            started_from=model,
            paused=bool(paused),
            begun_rounds=begun_rounds,
            next_rounds=next_rounds,
            ends_after=ends_after,
        )

    def pause(self, run: str, *, paused: bool) -> None:
        """Record that the run is paused, or that it goes on."""
        self._change_run(run, paused=paused)

    def extend(self, run: str, rounds: int) -> None:
        """Give the run's plan another number of rounds, once its open round is closed."""
        self._change_run(run, next_rounds=rounds)

    def end_early(self, run: str, closed: int) -> None:
        """Record that the run ends with the model after `closed` exchanges."""
        self._change_run(run, ends_after=closed)

    def _change_run(self, run: str, **values: object) -> None:
        names = ", ".join(f"{name} = ?" for name in values)
        with self._writing():
            self._database.execute(
                f"UPDATE run SET {names} WHERE id = ?",  # noqa: S608 - names of columns
                (*values.values(), run),
            )

    def add_action(self, user: str, command: str, arguments: str) -> None:
        """Record a command that is about to change a run."""
        with self._writing():
            self._database.execute(
                "INSERT INTO operator_action VALUES (NULL, ?, ?, ?, ?)",
                (time.time(), user, command, arguments),
            )

    def actions(self) -> tuple[Action, ...]:
        """Every command that changed a run, oldest first."""
        rows = self._rows("SELECT at, user, command, arguments FROM operator_action")
        return tuple(Action(*row) for row in rows)

    def has_results(self, run: str) -> bool:
        """True if the run has a kept contribution or a closed round."""
        kept = self._rows("SELECT 1 FROM contribution WHERE run = ? LIMIT 1", run)
        return bool(kept) or self.rounds_closed(run) > 0

    def finish(self, run: str, *, abandoned: bool = False) -> None:
        """Mark the run as done, or as abandoned.

        Deletes its models but the last one, and the payloads of a round that was open.
        """
        with self._writing():
            self._end_run(run, "abandoned" if abandoned else "done")

    def _end_run(self, run: str, state: RunPhase) -> None:
        self._database.execute(
            "UPDATE run SET state = ?, ended_at = ?, paused = 0 WHERE id = ?",
            (state, time.time(), run),
        )
        retention.end_run(self._database, run)

    def newest_model(self, run: str) -> StoredModel:
        """The model of the last closed round, or the initial model before any round is closed.

        Raises JournalError if it is not the model that was written.
        """
        row = self._one(f"{_MODEL} WHERE run = ? ORDER BY round DESC LIMIT 1", run)
        model = _whole_model(row)
        if model is None:
            raise self.damaged(
                f"the model of round {row[0]} in {run} is not the one that was written", run, row[0]
            )
        return model

    def keep(
        self,
        run: str,
        round: int,
        device: str,
        sha256: str,
        payload: bytes,
        norm: float,
        weight: int,
    ) -> None:
        """Put a contribution on disk; after `hold`, only `sync` puts it there.

        `norm` is that of its update, divided by its weight.

        Raises sqlite3.IntegrityError if the device already has one in this round; after `hold`,
        `sync` raises it.
        """

        def add() -> None:
            added = self._database.execute(
                "INSERT INTO contribution VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)",
                (run, round, device, sha256, len(payload), norm, weight),
            )
            self._database.execute("INSERT INTO payload VALUES (?, ?)", (added.lastrowid, payload))

        if self.is_holding:
            self._held.append(add)
            return
        with self._writing():
            add()

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

    def norms(self, run: str, round: int) -> list[float]:
        """The norms of the contributions to a round, open or closed, in the order of devices."""
        query = "SELECT norm FROM contribution WHERE run = ? AND round = ? ORDER BY device"
        return [norm for (norm,) in self._rows(query, run, round)]

    def contributed(self, run: str) -> list[tuple[int, str, int, float]]:
        """Round, device, payload bytes and norm of every contribution, by round and device."""
        query = (
            "SELECT round, device, size_bytes, norm FROM contribution WHERE run = ? "
            "ORDER BY round, device"
        )
        return self._rows(query, run)

    def sent(self, run: str, votes: Collection[int] = ()) -> dict[str, Sent]:
        """Return the contributions of each device to the run; `votes` have no norms."""
        places = ", ".join("?" * len(votes))
        # SQLite takes the norm from the row with the largest round.
        query = f"WHERE run = ? AND round NOT IN ({places}) GROUP BY device"
        query = f"SELECT device, norm, MAX(round) FROM contribution {query}"  # noqa: S608 - only "?"
        norms = self._rows(query, run, *votes)
        last = {device: norm for device, norm, _ in norms}
        rows = self._rows(
            "SELECT device, COUNT(*), SUM(size_bytes) FROM contribution WHERE run = ? "
            "GROUP BY device",
            run,
        )
        return {device: Sent(count, size, last.get(device)) for device, count, size in rows}

    def kept_bytes(self, run: str, round: int) -> int:
        """Total payload bytes of the contributions to a round, open or closed, as received."""
        query = "SELECT SUM(size_bytes) FROM contribution WHERE run = ? AND round = ?"
        return int(self._one(query, run, round)[0] or 0)

    def contributions(self, run: str, round: int) -> Iterator[tuple[str, bytes]]:
        """Yield device and payload of each contribution to an open round, in the order of `kept`.

        Only one payload is in memory at a time. Raises JournalError if one is not the payload that
        was written.
        """
        query = (
            "SELECT CAST(body AS BLOB) FROM contribution LEFT JOIN payload ON contribution = id "
            "WHERE run = ? AND round = ? AND device = ?"
        )
        for device, sha256 in self.kept(run, round).items():
            (payload,) = self._one(query, run, round, device)
            if payload is None or hashlib.sha256(payload).hexdigest() != sha256:
                raise self.damaged(
                    f"the contribution of {device} to round {round} in {run} is not the one that "
                    "was written",
                    run,
                    round,
                )
            yield device, payload

    def last_contributions(
        self, encoder_id: str, classes_digest: str
    ) -> tuple[LastContribution, ...]:
        """The last contribution of each device for this encoder and these classes, by device."""
        return self._contributions(
            "last_contribution WHERE encoder_id = ? AND classes_digest = ?",
            encoder_id,
            classes_digest,
        )

    def counted_last(self, run: str, round: int) -> tuple[LastContribution, ...]:
        """The contributions of earlier runs that also counted in a closed round, by device."""
        return self._contributions("counted_last WHERE run = ? AND round = ?", run, round)

    def _contributions(self, source: str, *values: object) -> tuple[LastContribution, ...]:
        rows = self._rows(
            "SELECT id, device, contribution.run, sha256 FROM contribution "  # noqa: S608 - constants
            f"WHERE id IN (SELECT contribution FROM {source}) ORDER BY device",
            *values,
        )
        codecs = {run.id: run.plan.codec_up for run in self.runs()} if rows else {}
        return tuple(
            LastContribution(one, device, run, sha256, codecs[run])
            for one, device, run, sha256 in rows
        )

    def payload_of(self, last: LastContribution) -> bytes:
        """The payload of a contribution; JournalError if it is not the one that was written."""
        query = "SELECT CAST(body AS BLOB) FROM payload WHERE contribution = ?"
        payload = bytes(self._one(query, last.id)[0])
        if hashlib.sha256(payload).hexdigest() != last.sha256:
            raise self.damaged(
                f"the last contribution of {last.device} is not the one that was written"
            )
        return payload

    def forgotten(self, run: str) -> frozenset[str]:
        """The devices that were removed from the run (forgetting.py)."""
        rows = self._rows("SELECT device FROM forgotten WHERE run = ?", run)
        return frozenset(device for (device,) in rows)

    def close_round(
        self,
        run: str,
        model: StoredModel,
        stays: retention.Stays = "nothing",
        counted: Iterable[int] = (),
    ) -> int:
        """Commit the model of `model.round`, and put an extension of the run in force.

        Deletes the payloads that it was made of, except those that stay, and the run's models
        before the newest `keep_models`. `counted` are the ids of earlier contributions that counted
        again. Returns the number of last contributions that are beyond the limit and deleted.
        """
        with self._writing():
            self._add_model(run, model)
            self._database.execute(
                "UPDATE run SET rounds = next_rounds, next_rounds = NULL "
                "WHERE id = ? AND next_rounds IS NOT NULL",
                (run,),
            )
            self._database.execute(
                "DELETE FROM model WHERE run = ? AND round <= ?",
                (run, model.round - self.keep_models),
            )
            most = self.keep_sums_mb * 2**20
            return retention.close_round(self._database, run, model.round, stays, counted, most)

    def rewind(self, run: str, round: int) -> None:
        """Delete everything after a closed round: models, contributions and reports.

        Raises ConfigError if the journal has no whole model of this round.
        """
        whole = self.whole_rounds(run)
        if round not in whole:
            listed = ", ".join(map(str, whole)) or "none"
            raise ConfigError(
                f"the journal {self.path} cannot go back to round {round} of {run}: its whole "
                f"models are of the rounds {listed}; name one of them, or restore a copy of the "
                "journal"
            )
        lost = "IN (SELECT id FROM contribution WHERE run = ? AND round > ?)"
        with self._writing():
            self._database.execute("UPDATE run SET ends_after = NULL WHERE id = ?", (run,))
            for table in ("payload", "last_contribution"):
                self._database.execute(
                    f"DELETE FROM {table} WHERE contribution {lost}",  # noqa: S608 - constants
                    (run, round),
                )
            for table in ("counted_last", "contribution", "model", "report"):
                self._database.execute(
                    f"DELETE FROM {table} WHERE run = ? AND round > ?",  # noqa: S608 - constants
                    (run, round),
                )

    def rounds_closed(self, run: str) -> int:
        """Number of closed rounds of the run."""
        (newest,) = self._one("SELECT MAX(round) FROM model WHERE run = ?", run)
        if not isinstance(newest, int):
            raise self.damaged(f"{run} has no model")
        return newest

    def add_report(self, report: Report) -> None:
        """Store a report; a later one by the same device on the same round replaces it.

        The commit is not synced: the device sends its report again after a restart of the
        coordinator.
        """
        text = json.dumps(report.to_json())
        row = (report.run, report.round, report.device, zlib.compress(text.encode()))

        def add() -> None:
            self._database.execute("INSERT OR REPLACE INTO report VALUES (?, ?, ?, ?)", row)

        if self.is_holding:
            self._held.append(add)
            return
        with unsynced(self._database), self._writing():
            add()

    def reports(self, run: str) -> tuple[Report, ...]:
        """Every report of the run, in the order of round and device.

        Raises JournalError if one is damaged.
        """
        rows = self._reports("WHERE run = ? ORDER BY round, device", run)
        return tuple(self._decode(Report, text) for text in rows)

    def newest_reports(self, run: str) -> dict[str, Mapping[str, Any]]:
        """The last report of each device in the run as a JSON object, by device.

        Raises JournalError if one is damaged.
        """
        texts = self._reports(
            "JOIN (SELECT device AS of, MAX(round) AS last FROM report WHERE run = ? "
            "GROUP BY device) ON device = of AND round = last WHERE run = ? ORDER BY device",
            run,
            run,
        )
        return {report["device"]: report for report in map(json.loads, texts)}

    def reported(self, run: str) -> Iterator[Mapping[str, Any]]:
        """Yield every report of the run as a JSON object, in the order of round and device.

        This is several times as fast as `reports`. Raises JournalError if one is damaged.
        """
        yield from map(json.loads, self._reports("WHERE run = ? ORDER BY round, device", run))

    def _reports(self, which: str, *values: object) -> Iterator[str]:
        query = f"SELECT CAST(report AS BLOB) FROM report {which}"  # noqa: S608 - constants
        for (report,) in self._rows(query, *values):
            try:
                yield zlib.decompress(report).decode()
            except (zlib.error, TypeError, ValueError) as error:
                raise self.damaged(f"a report of {values[0]} cannot be read ({error})") from error

    def pin_key(self, run: str, device: str, key: str, pictures: int = 0) -> None:
        """Pin a device's key in this run, in place of one that is pinned.

        `pictures` is the number of labelled pictures that the device has now.
        """
        with self._writing():
            self._database.execute(
                "INSERT OR REPLACE INTO pinned_key VALUES (?, ?, ?, ?)",
                (run, device, key, pictures),
            )

    def keys(self, run: str) -> dict[str, str]:
        """Every pinned key of the run, by device."""
        return dict(self._rows("SELECT device, key FROM pinned_key WHERE run = ?", run))

    def copy(self, target: Path) -> None:
        """Copy the journal, in one state, to the new file `target`; others may write meanwhile."""
        with errors_as(self._unusable("copied"), self._malformed):
            copy_database(self._database, target)

    def pictures(self, run: str) -> dict[str, int]:
        """The labelled pictures that each device had when it joined the run, by device."""
        return dict(self._rows("SELECT device, pictures FROM pinned_key WHERE run = ?", run))

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Put all writes inside the block into one transaction; if it raises, nothing is changed.

        What is deleted inside the block is overwritten with zeros. The connection is for further
        statements. Raises the errors of the methods that write.
        """
        with overwriting(self._database), self._writing():
            self._is_writing = True
            try:
                yield self._database
            finally:
                self._is_writing = False

    def mark_for_rewriting(self) -> None:
        """Record that rows were deleted of which no byte may stay; call it inside a transaction."""
        self._database.execute("PRAGMA application_id = 1")

    @property
    def needs_rewriting(self) -> bool:
        """True if `rewrite` is still to be done."""
        return bool(self._one("PRAGMA application_id")[0])

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

    def _not_erased(self, reason: object) -> JournalError:
        return JournalError(
            f"deleted data is still in the journal {self.path} ({reason}); free as much disk space "
            "as the file has, and end all processes that read it"
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Open a transaction, if none is open; if it raises, nothing is changed.

        Raises JournalError on a disk error, RunError if another process claimed a later epoch.
        """
        if self._is_writing:
            yield
            return
        self.sync()
        with errors_as(self._unusable("written"), self._malformed), self._database:
            self._database.execute("BEGIN IMMEDIATE")  # no other process writes after the check
            self.check_claim()
            yield

    def _unusable(self, what: str) -> Callable[[Exception], JournalError]:
        return lambda error: JournalError(
            f"the journal {self.path} cannot be {what} ({error}); free or repair the disk and "
            "start again; acknowledged contributions are in the journal"
        )

    def _malformed(self, error: Exception) -> JournalError:
        return _damaged(self.path, str(error))

    def damaged(self, what: str, run: str = "", before: int = 0) -> JournalError:
        """Return the error for damage that is described by `what`, with the next step.

        If `run` is given, only its rounds from `before` on are damaged. The error then names the
        newest whole model of an earlier round, if the journal has one.
        """
        whole = [number for number in self.whole_rounds(run) if number < before]
        return _damaged(self.path, what, whole[-1] if whole else None)

    def whole_rounds(self, run: str) -> list[int]:
        """The closed rounds whose model is in the journal as it was written, in order."""
        numbers = self._rows("SELECT round FROM model WHERE run = ? ORDER BY round", run)
        rows = (self._one(f"{_MODEL} WHERE run = ? AND round = ?", run, n) for (n,) in numbers)
        return [row[0] for row in rows if _whole_model(row) is not None]

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with errors_as(self._unusable("read"), self._malformed):
            return self._database.execute(query, values).fetchall()

    def _add_model(self, run: str, model: StoredModel) -> None:
        self._database.execute(
            "INSERT INTO model VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                run,
                model.round,
                model.sha256,
                model.payload,
                model.server_state,
                model.master,
                _sha256_of(model.server_state, model.master),
            ),
        )

    def _run(self, row: tuple[Any, ...]) -> Run:
        identifier, text, encoder_id, classes_digest, rounds = row
        plan = self._decode(Plan, text)
        plan = plan if rounds is None else replace(plan, rounds=rounds)
        return Run(str(identifier), plan, str(encoder_id), str(classes_digest))

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
        rows = self._rows(query, *values)
        if not rows:
            raise self.damaged("a row is missing")
        return rows[0]


def open_journal(
    path: Path,
    keep_models: int = FleetConfig.keep_models,
    keep_sums_mb: int = FleetConfig.keep_sums_mb,
) -> Journal:
    """Open the journal; create it if it is missing.

    Each round that it closes leaves the newest `keep_models` models of its run in the file, and at
    most `keep_sums_mb` MB of last contributions.
    Raises ConfigError, and changes nothing, if `path` is a folder, a database of another program or
    a journal of another version; JournalError if the file cannot be read or written, is empty or
    damaged.
    """

    def opened() -> Connection:
        if not path.exists():
            _create(path)
        _check_not_empty(path)
        return open_database(path, SCHEMA, create=False)

    return Journal(path, _opened(path, opened), keep_models, keep_sums_mb)


def open_journal_to_read(path: Path) -> Journal:
    """Open the journal to read it only, also while a coordinator writes to it; it must exist.

    Raises as `open_journal` does, and ConfigError if the file is missing.
    """

    def opened() -> Connection:
        if not path.exists():
            raise ConfigError(
                f"there is no journal {path} yet; start `fedclip-edge serve`, or name another "
                "configuration file"
            )
        _check_not_empty(path)
        return open_to_read(path, SCHEMA)

    return Journal(path, _opened(path, opened))


def _check_not_empty(path: Path) -> None:
    if path.stat().st_size == 0:
        raise _damaged(path, "it is empty (0 bytes)")


def _opened(path: Path, open_it: Callable[[], Connection]) -> Connection:
    """Call `open_it`, and raise the errors of `open_journal` in place of SQLite's."""

    def refused(error: Exception) -> JournalError:
        return JournalError(
            f"the journal {path} cannot be opened ({error}); free or repair the disk, let this user "
            "write there, or set 'journal' to another file; the file is unchanged"
        )

    if path.is_dir():
        raise ConfigError(f"the journal {path} is a folder; set 'journal' to a file")
    try:
        with errors_as(refused, lambda error: _damaged(path, str(error))):
            return open_it()
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(
            f"the journal {path} cannot be opened: {path.parent} is not a folder; set 'journal' to a "
            "file in a folder"
        ) from None
    except OSError as error:
        raise refused(error) from error
    except EmptyDatabaseError:
        raise _damaged(path, "it has no tables") from None
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


def _create(path: Path) -> None:
    """Make a new journal, unless another process makes it at the same time.

    The file appears with all its tables. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked_folder(path.parent):
        if path.exists():
            return
        for stale in ("-wal", "-shm"):  # of a deleted journal; SQLite would read them into this one
            Path(f"{path}{stale}").unlink(missing_ok=True)
        with atomic.beside(path) as folder:
            open_database(folder / path.name, SCHEMA).close()
            content = (folder / path.name).read_bytes()
        atomic.write_file(path, content)


def _damaged(path: Path, what: str, whole: int | None = None) -> JournalError:
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


def _whole_model(row: tuple[Any, ...]) -> StoredModel | None:
    """The model of a row of _MODEL; None if it is not the one that was written."""
    number, sha256, body, server_state, master, rest_sha256 = row
    found = hashlib.sha256(body).hexdigest(), _sha256_of(server_state, master)
    if found != (sha256, rest_sha256):
        return None
    return StoredModel(number, sha256, body, server_state, master)


def _sha256_of(server_state: bytes, master: bytes | None) -> str:
    digest = hashlib.sha256(server_state)
    digest.update(master or b"")
    return digest.hexdigest()
