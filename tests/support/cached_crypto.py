"""Caches that make a simulated run cheap without changing what is tested.

Signatures and parsed messages are cached by their input bytes, since both depend only on these.
Otherwise 2,000 runs would take too long for a test.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from in_memory import class_texts

from fedclip_edge import log
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.protocol import chunks, signing, wire
from fedclip_edge.protocol.message_parts import Blob
from fedclip_edge.protocol.signing import Identity
from fedclip_edge.records import Plan
from fedclip_edge.transport import inbox
from fedclip_edge.transport.fair_queue import Room

CLASSES = class_texts(("ant", "bee"), dim=4)
DIM = 4
CHUNK_BYTES = 400  # gives two chunks for a model of 40 numbers


@functools.cache
def schedule_of(plan: str) -> Schedule:
    """The exchanges of a simulated run; `plan` is a plan in JSON."""
    return Schedule(Plan(**json.loads(plan)), CLASSES, DIM)


def schedule(plan: Plan) -> Schedule:
    return schedule_of(json.dumps(plan.to_json()))


@functools.cache
def identity_of(name: str) -> Identity:
    return Identity(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


_sign = functools.lru_cache(maxsize=2**14)(Identity.sign)
_verifies = functools.lru_cache(maxsize=2**14)(signing.verifies)
_unpack = functools.lru_cache(maxsize=2**14)(wire.unpack_control)


def _silent(name: str, /, **fields: object) -> None:
    pass


@contextmanager
def quickly(*, logs: bool) -> Iterator[None]:
    """Use small chunks and queues, no log lines, and caches for signing, verifying and parsing."""
    with ExitStack() as patches:
        for target, name, value in (
            (Identity, "sign", lambda me, message: _sign(me, message)),  # noqa: PLW0108  # a method
            (wire, "verifies", _verifies),
            (wire, "unpack_control", _unpack),
            # The default of 120 KiB is written in two places.
            (Blob.__init__, "__defaults__", (CHUNK_BYTES,)),
            (chunks.blob_of, "__defaults__", (CHUNK_BYTES,)),
            # A flood of a few hundred messages is enough.
            (inbox, "SHARE", Room(64, 2**20)),
            (inbox, "FLOOD", 64),
        ):
            patches.enter_context(mock.patch.object(target, name, value))
        if not logs:
            patches.enter_context(mock.patch.object(log, "event", _silent))
        yield
