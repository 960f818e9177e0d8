"""Parts that make a simulated run cheap without changing what is tested.

Ed25519 signatures and the reading of messages are looked up where the same bytes come again: both
are functions of their arguments alone, and 2,000 runs have to fit into a test.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from device_laws import update_of
from in_memory import class_texts

from fedclip_edge import log
from fedclip_edge.learning import methods
from fedclip_edge.protocol import chunks, signing, wire
from fedclip_edge.protocol.messages import Blob
from fedclip_edge.protocol.report import Report
from fedclip_edge.protocol.signing import Identity
from fedclip_edge.records import Arrays, Layout, Measured, Model, Plan, Shapes, Update

CLASSES = class_texts(("ant", "bee"), dim=4)
DIM = 4
CHUNK_BYTES = 400  # a model of 40 numbers in two chunks


@dataclass(eq=False)
class Learner:
    """What learner.Learner asks for, without pictures; training takes virtual time alone."""

    device: str
    variant: str  # another one in each process, as where pictures come and go
    trains: Callable[[str, Model], None]  # told with that and the model when training begins
    busy_s: float = 0.0

    def shapes(self, plan: Plan) -> Shapes:
        return layout(plan.method).parameters

    def fit(self, model: Model, plan: Plan, state: Arrays) -> tuple[Update, Arrays]:
        self.trains(self.variant, model)
        kept = int(state["kept"]) if state else 0
        update = update_of(model, self.device, self.variant)
        return update, {"kept": np.array(kept + 1, np.float32)}

    def evaluate(self, model: Model, plan: Plan, *, final: bool) -> Measured:
        return Measured({"federated": 0.5})

    def report(
        self, run: str, model: Model, version: str, measured: Measured, wait_s: float
    ) -> Report:
        return Report(
            run=run,
            round=model.round,
            device=self.device,
            domain="",
            model=version,
            accuracy=measured.accuracy,
            train_pictures=1,
            test_pictures=1,
            encoded=0,
            skipped=0,
            bytes_up=None,
            bytes_down=None,
            encode_s=0.0,
            train_s=0.0,
            wait_s=0.0,
        )


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
