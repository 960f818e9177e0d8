"""A journal with one run, for the tests of its parts."""

from __future__ import annotations

import hashlib
import sqlite3
from typing import Any

from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.coordinator.journal_tables import Run, StoredModel
from fedclip_edge.records import Plan

RUN = Run("run-1", Plan("fedclip", rounds=3, vote="off", options={"lr": 0.1}), "e" * 64, "c" * 64)


def model(round: int, body: bytes = b"body", state: bytes = b"") -> StoredModel:
    return StoredModel(round, sha256_of(body), body, state)


def sha256_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def same(left: StoredModel, right: StoredModel) -> bool:
    return all(getattr(left, name) == getattr(right, name) for name in vars(left))


def database(journal: Journal) -> sqlite3.Connection:
    return journal._database


def break_with(journal: Journal, statement: str, error: Exception) -> None:
    """Make every statement that begins with `statement` fail, as a disk would."""

    class Broken:
        def __init__(self, connection: sqlite3.Connection) -> None:
            self._connection = connection

        def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
            if query.startswith(statement):
                raise error
            return self._connection.execute(query, *values)

        def __enter__(self) -> None:
            self._connection.__enter__()

        def __exit__(self, *error: object) -> None:
            self._connection.__exit__(*error)  # type: ignore[arg-type]

        def close(self) -> None:
            self._connection.close()

    vars(journal)["_database"] = Broken(journal._database)


def kept(journal: Journal, round: int, device: str, norm: float, size: int = 4) -> None:
    payload = b"x" * size
    journal.contributions.keep(RUN.id, round, device, sha256_of(payload), payload, norm, 1)
