"""Parts that make a simulated run cheap without changing what is tested.

Ed25519 signatures and the reading of messages are looked up where the same bytes come again: both
are functions of their arguments alone, and 2,000 runs have to fit into a test.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from in_memory import class_texts

from fedclip_edge import log
from fedclip_edge.learning import methods
from fedclip_edge.protocol import chunks, signing, wire
from fedclip_edge.protocol.messages import Blob
from fedclip_edge.protocol.signing import Identity
from fedclip_edge.records import Layout, Plan

CLASSES = class_texts(("ant", "bee"), dim=4)
DIM = 4
CHUNK_BYTES = 400  # a model of 40 numbers in two chunks


@functools.cache
def layout(method: str) -> Layout:
    """Of every model and update here."""
    return methods.plan_layout(Plan(method), CLASSES, DIM)


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
    """Small chunks, no log lines, and nothing signed, verified or parsed a second time."""
    with ExitStack() as patches:
        for target, name, value in (
            (Identity, "sign", lambda me, message: _sign(me, message)),  # noqa: PLW0108  # a method
            (wire, "verifies", _verifies),
            (wire, "unpack_control", _unpack),
            # 120 KiB is written as a default in two places.
            (Blob.__init__, "__defaults__", (CHUNK_BYTES,)),
            (chunks.blob_of, "__defaults__", (CHUNK_BYTES,)),
        ):
            patches.enter_context(mock.patch.object(target, name, value))
        if not logs:
            patches.enter_context(mock.patch.object(log, "event", _silent))
        yield
