"""The tables of the journal, and the records that are read from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedclip_edge.records import Plan
from fedclip_edge.storage.sqlite import Schema

SCHEMA = Schema(
    version=5,
    table="contribution",
    script="""
CREATE TABLE run (
    id TEXT PRIMARY KEY, plan TEXT NOT NULL, encoder_id TEXT NOT NULL,
    classes_digest TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('held', 'open', 'done', 'abandoned')),
    started_at REAL NOT NULL, ended_at REAL, -- Unix time in seconds
    started_by TEXT NOT NULL, -- the cause, in words
    started_from TEXT NOT NULL, -- 'zero-shot', or the run whose model it started from
    paused INTEGER NOT NULL DEFAULT 0,
    rounds INTEGER, -- in place of the plan's, once an extension is in force
    next_rounds INTEGER, -- an extension that is in force once the open round is closed
    ends_after INTEGER -- closed exchanges after which the operator ended the run
);
CREATE TABLE model (
    run TEXT NOT NULL REFERENCES run, round INTEGER NOT NULL, sha256 TEXT NOT NULL,
    body BLOB NOT NULL, server_state BLOB NOT NULL, master BLOB,
    rest_sha256 TEXT NOT NULL, -- of server_state and master, one after the other
    PRIMARY KEY (run, round)
);
CREATE TABLE contribution (
    id INTEGER PRIMARY KEY,
    run TEXT NOT NULL REFERENCES run, round INTEGER NOT NULL, device TEXT NOT NULL,
    sha256 TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    norm REAL NOT NULL, weight INTEGER NOT NULL, -- norm of the update, divided by its weight
    UNIQUE (run, round, device)
);
-- A table of its own: deleting a whole row gives its pages back. In a row that stays, a payload of
-- 25 kB would leave a page of 32 kB that holds nothing but the rest of the row.
CREATE TABLE payload (
    contribution INTEGER PRIMARY KEY REFERENCES contribution, body BLOB NOT NULL
);
CREATE TABLE report (
    run TEXT NOT NULL REFERENCES run, round INTEGER NOT NULL, device TEXT NOT NULL,
    report BLOB NOT NULL, -- JSON, compressed by zlib
    PRIMARY KEY (run, round, device)
);
CREATE TABLE pinned_key (
    run TEXT NOT NULL REFERENCES run, device TEXT NOT NULL, key TEXT NOT NULL,
    pictures INTEGER NOT NULL, -- labelled ones that the device declared when it joined the run
    PRIMARY KEY (run, device),
    UNIQUE (run, device, key) -- so that integrity_check compares each key with its copy
);
CREATE TABLE epoch (only INTEGER PRIMARY KEY CHECK (only = 1), value INTEGER NOT NULL);
INSERT INTO epoch VALUES (1, 0);
-- Commands that changed a run. Each is here before it takes effect.
CREATE TABLE operator_action (
    number INTEGER PRIMARY KEY, at REAL NOT NULL, -- Unix time in seconds
    user TEXT NOT NULL, command TEXT NOT NULL, arguments TEXT NOT NULL -- JSON
);
""",
)


RunPhase = Literal["held", "open", "done", "abandoned"]
ZERO_SHOT = "zero-shot"


@dataclass(frozen=True)
class Run:
    """One run as the journal stores it."""

    id: str
    plan: Plan  # the rounds of an extension that is in force are in it
    encoder_id: str
    classes_digest: str  # ClassTexts.digest


@dataclass(frozen=True)
class Origin:
    """The beginning of a run."""

    by: str = "serve"  # the cause, in words
    model: str = ZERO_SHOT  # or the id of the run whose model it started from
    held: bool = False  # it waits until the operator starts it


@dataclass(frozen=True)
class Course:
    """The course of a run so far. Times are Unix times, in seconds."""

    state: RunPhase
    started_at: float
    ended_at: float | None
    started_by: str
    started_from: str
    paused: bool
    begun_rounds: int  # rounds of the plan that the run began with
    next_rounds: int | None  # rounds of the plan once the open round is closed, if they change then
    ends_after: int | None  # closed exchanges after which the operator ended the run

    @property
    def is_over(self) -> bool:
        return self.state in ("done", "abandoned")


@dataclass(frozen=True)
class Action:
    """A command of the operator that changed a run."""

    at: float  # Unix time in seconds
    user: str
    command: str
    arguments: str  # JSON


@dataclass(frozen=True, eq=False)
class StoredModel:
    """The initial model of a run, or the model of a closed round, as the journal stores it."""

    round: int  # closed rounds; 0 for the initial model
    sha256: str  # of `payload`
    payload: bytes  # as published, in the plan's codec_down
    server_state: bytes  # the method's state on the coordinator between rounds, as safetensors
    master: bytes | None = None  # the model in float32; None if `payload` is float32 already
