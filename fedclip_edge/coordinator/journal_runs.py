"""The runs in a journal, and the course of each one.

Laws:
- The journal has at most one run that is not over: the newest.
- A run that ends keeps only its last model, and no payload of a round that was open.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import Any

from fedclip_edge.coordinator import retention
from fedclip_edge.coordinator.journal_file import JournalFile
from fedclip_edge.coordinator.journal_rounds import insert_model
from fedclip_edge.coordinator.journal_tables import Course, Origin, Run, RunPhase, StoredModel
from fedclip_edge.records import Plan
from fedclip_edge.storage.sqlite import Connection

_RUN = "SELECT id, plan, encoder_id, classes_digest, rounds FROM run"


@dataclass(frozen=True)
class Runs:
    """The runs of a journal. Errors are those of JournalFile."""

    file: JournalFile

    def add(
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
        with self.file.transaction() as database:
            if abandons is not None:
                _end_run(database, abandons, "abandoned")
            held = "(SELECT id FROM run WHERE state = 'held')"
            for table in ("model", "report", "pinned_key", "forgotten"):
                database.execute(f"DELETE FROM {table} WHERE run IN {held}")  # noqa: S608
            database.execute("DELETE FROM run WHERE state = 'held'")
            database.execute(
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
            insert_model(database, run.id, initial)
        self.file.empty_log()

    def unfinished(self) -> Run | None:
        """The newest run if it is not over; None otherwise."""
        run = self.last()
        return None if run is None or self.course(run.id).is_over else run

    def last(self) -> Run | None:
        """The newest run, finished or not; None if the journal has no run."""
        rows = self.file.rows(f"{_RUN} ORDER BY rowid DESC LIMIT 1")
        return self._run(rows[0]) if rows else None

    def all(self) -> tuple[Run, ...]:
        """Every run, oldest first."""
        return tuple(map(self._run, self.file.rows(f"{_RUN} ORDER BY rowid")))

    def last_done(self) -> Run | None:
        """The newest run that is done; None if none is."""
        rows = self.file.rows(f"{_RUN} WHERE state = 'done' ORDER BY rowid DESC LIMIT 1")
        return self._run(rows[0]) if rows else None

    def course(self, run: str) -> Course:
        """The course of a run of this journal so far."""
        state, started_at, ended_at, by, model, paused, plan, next_rounds, ends_after = (
            self.file.one(
                "SELECT state, started_at, ended_at, started_by, started_from, paused, plan, "
                "next_rounds, ends_after FROM run WHERE id = ?",
                run,
            )
        )
        begun_rounds = self.file.decode(Plan, plan).rounds
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

    def finish(self, run: str, *, abandoned: bool = False) -> None:
        """Mark the run as done, or as abandoned.

        Deletes its models but the last one, and the payloads of a round that was open.
        """
        with self.file.transaction() as database:
            _end_run(database, run, "abandoned" if abandoned else "done")

    def _change_run(self, run: str, **values: object) -> None:
        names = ", ".join(f"{name} = ?" for name in values)
        with self.file.transaction() as database:
            database.execute(
                f"UPDATE run SET {names} WHERE id = ?",  # noqa: S608 - names of columns
                (*values.values(), run),
            )

    def _run(self, row: tuple[Any, ...]) -> Run:
        identifier, text, encoder_id, classes_digest, rounds = row
        plan = self.file.decode(Plan, text)
        plan = plan if rounds is None else replace(plan, rounds=rounds)
        return Run(str(identifier), plan, str(encoder_id), str(classes_digest))


def _end_run(database: Connection, run: str, state: RunPhase) -> None:
    database.execute(
        "UPDATE run SET state = ?, ended_at = ?, paused = 0 WHERE id = ?",
        (state, time.time(), run),
    )
    retention.end_run(database, run)
