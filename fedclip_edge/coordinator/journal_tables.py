"""The tables of the journal, and the records that are read from them."""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge.records import Plan
from fedclip_edge.storage.sqlite import Schema

SCHEMA = Schema(
    version=4,
    table="contribution",
    script="""
CREATE TABLE run (
    id TEXT PRIMARY KEY, plan TEXT NOT NULL, encoder_id TEXT NOT NULL,
    classes_digest TEXT NOT NULL, state TEXT NOT NULL CHECK (state IN ('open', 'done'))
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
    PRIMARY KEY (run, device),
    UNIQUE (run, device, key) -- so that integrity_check compares each key with its copy
);
CREATE TABLE epoch (only INTEGER PRIMARY KEY CHECK (only = 1), value INTEGER NOT NULL);
INSERT INTO epoch VALUES (1, 0);
""",
)


@dataclass(frozen=True)
class Run:
    """One run as the journal stores it."""

    id: str
    plan: Plan
    encoder_id: str
    classes_digest: str  # ClassTexts.digest


@dataclass(frozen=True, eq=False)
class StoredModel:
    """The initial model of a run, or the model of a closed round, as the journal stores it."""

    round: int  # closed rounds; 0 for the initial model
    sha256: str  # of `payload`
    payload: bytes  # as published, in the plan's codec_down
    server_state: bytes  # the method's state on the coordinator between rounds, as safetensors
    master: bytes | None = None  # the model in float32; None if `payload` is float32 already
