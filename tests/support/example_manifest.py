"""A manifest with changed fields."""

from __future__ import annotations

from typing import Any

from fedclip_edge.protocol.message_parts import Blob, Exchange
from fedclip_edge.protocol.messages import Manifest
from fedclip_edge.records import Plan

SHA, KEY = "a" * 64, "b" * 64


BLOB = Blob(SHA, 1000, "model")


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "run": "run-1",
        "epoch": 1,
        "key": KEY,
        "phase": "open",
        "exchange": Exchange("round", 1, SHA, 1000.0),
        "attempt": 0,
        "closed": 0,
        "model": BLOB,
        "plan": Plan("fedclip", rounds=30),
        "encoder_id": SHA,
        "classes_digest": SHA,
        "cohort": "f" * 64,
        "deadline_s": 600.0,
    }
    return Manifest(**{**fields, **changes})
