"""The closed rounds in a journal: their models, and the step from one to the next.

Laws:
- Closing a round commits the model and deletes its contribution payloads in one transaction, except
  those that may count again (retention.py). The rows without their payloads stay, so a lost answer
  can be repeated.
- A run under way keeps its newest `keep_models` models. So a round adds only its reports and one
  row for each contribution; the payloads that stay have at most `keep_sums_mb` in all.
- A model is stored as the bytes that were published and is never encoded again, because another
  version of the compression library may produce different bytes.
- A model that is read is compared with its SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator import retention
from fedclip_edge.coordinator.journal_file import JournalFile
from fedclip_edge.coordinator.journal_tables import StoredModel
from fedclip_edge.errors import ConfigError, JournalError
from fedclip_edge.storage.sqlite import Connection

# A cast gives the same bytes also if damage turned a column's type into text.
_MODEL = (
    "SELECT round, sha256, CAST(body AS BLOB), CAST(server_state AS BLOB), CAST(master AS BLOB), "
    "rest_sha256 FROM model"
)


@dataclass(frozen=True)
class Rounds:
    """The closed rounds of every run. Errors are those of JournalFile."""

    file: JournalFile
    keep_models: int = FleetConfig.keep_models
    keep_sums_mb: int = FleetConfig.keep_sums_mb

    def closed(self, run: str) -> int:
        """Number of closed rounds of the run."""
        (newest,) = self.file.one("SELECT MAX(round) FROM model WHERE run = ?", run)
        if not isinstance(newest, int):
            raise self.file.damaged(f"{run} has no model")
        return newest

    def has_results(self, run: str) -> bool:
        """True if the run has a kept contribution or a closed round."""
        kept = self.file.rows("SELECT 1 FROM contribution WHERE run = ? LIMIT 1", run)
        return bool(kept) or self.closed(run) > 0

    def newest_model(self, run: str) -> StoredModel:
        """The model of the last closed round, or the initial model before any round is closed.

        Raises JournalError if it is not the model that was written.
        """
        row = self.file.one(f"{_MODEL} WHERE run = ? ORDER BY round DESC LIMIT 1", run)
        model = _whole_model(row)
        if model is None:
            raise self.damaged(
                f"the model of round {row[0]} in {run} is not the one that was written", run, row[0]
            )
        return model

    def whole(self, run: str) -> list[int]:
        """The closed rounds whose model is in the journal as it was written, in order."""
        numbers = self.file.rows("SELECT round FROM model WHERE run = ? ORDER BY round", run)
        rows = (self.file.one(f"{_MODEL} WHERE run = ? AND round = ?", run, n) for (n,) in numbers)
        return [row[0] for row in rows if _whole_model(row) is not None]

    def add_model(self, run: str, model: StoredModel) -> None:
        """Add a model that a run lacks."""
        with self.file.transaction() as database:
            insert_model(database, run, model)

    def close(
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
        with self.file.transaction() as database:
            insert_model(database, run, model)
            database.execute(
                "UPDATE run SET rounds = next_rounds, next_rounds = NULL "
                "WHERE id = ? AND next_rounds IS NOT NULL",
                (run,),
            )
            database.execute(
                "DELETE FROM model WHERE run = ? AND round <= ?",
                (run, model.round - self.keep_models),
            )
            most = self.keep_sums_mb * 2**20
            return retention.close_round(database, run, model.round, stays, counted, most)

    def rewind(self, run: str, round: int) -> None:
        """Delete everything after a closed round: models, contributions and reports.

        Raises ConfigError if the journal has no whole model of this round.
        """
        whole = self.whole(run)
        if round not in whole:
            listed = ", ".join(map(str, whole)) or "none"
            raise ConfigError(
                f"the journal {self.file.path} cannot go back to round {round} of {run}: its whole "
                f"models are of the rounds {listed}; name one of them, or restore a copy of the "
                "journal"
            )
        lost = "IN (SELECT id FROM contribution WHERE run = ? AND round > ?)"
        with self.file.transaction() as database:
            database.execute("UPDATE run SET ends_after = NULL WHERE id = ?", (run,))
            for table in ("payload", "last_contribution"):
                database.execute(
                    f"DELETE FROM {table} WHERE contribution {lost}",  # noqa: S608 - constants
                    (run, round),
                )
            for table in ("counted_last", "contribution", "model", "report"):
                database.execute(
                    f"DELETE FROM {table} WHERE run = ? AND round > ?",  # noqa: S608 - constants
                    (run, round),
                )

    def damaged(self, what: str, run: str, before: int) -> JournalError:
        """Return the error for damage to the rounds of a run from `before` on.

        It names the newest whole model of an earlier round, if the journal has one.
        """
        whole = [number for number in self.whole(run) if number < before]
        return self.file.damaged(what, whole[-1] if whole else None)


def insert_model(database: Connection, run: str, model: StoredModel) -> None:
    """Add a model of a run, inside a transaction of the journal."""
    database.execute(
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
