"""The tables of the journal, and the records that are read from them."""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge.records import Codec, Plan
from fedclip_edge.storage.sqlite import Schema

SCHEMA = Schema(
    version=5,
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
-- Contributions that stay after their round is closed (retention.py).
-- The newest sums of each device, for each encoder and list of classes.
CREATE TABLE last_contribution (
    device TEXT NOT NULL, encoder_id TEXT NOT NULL, classes_digest TEXT NOT NULL,
    contribution INTEGER NOT NULL REFERENCES contribution,
    PRIMARY KEY (device, encoder_id, classes_digest)
);
-- Contributions of earlier runs that also counted in a round, for devices that were absent.
CREATE TABLE counted_last (
    run TEXT NOT NULL REFERENCES run, round INTEGER NOT NULL,
    contribution INTEGER NOT NULL REFERENCES contribution,
    PRIMARY KEY (run, round, contribution)
);
-- Devices that were removed from a run (forgetting.py).
CREATE TABLE forgotten (
    run TEXT NOT NULL REFERENCES run, device TEXT NOT NULL,
    in_models INTEGER NOT NULL, -- 1 if models of the run still contain its contributions
    PRIMARY KEY (run, device)
);
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


@dataclass(frozen=True)
class LastContribution:
    """A device's contribution to a closed round, which may count again; its payload stays."""

    id: int
    device: str
    run: str  # that it was made for
    sha256: str  # of the payload
    codec: Codec  # of the payload
