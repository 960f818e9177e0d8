"""What must hold at every step of a run, whatever the adversary does; checked from outside.

The journal is read through the coordinator's own `Store`, but what it should hold is worked out
anew: every device's update is a function of the model and the device, so a faultless run over the
contributions that the journal names is computed here from the initial model on.

Laws, as `BrokenLawError.law` names them:
- twice: the open round's sum holds each kept contribution once, and a device counts once a round.
- lost: what was acknowledged is in the journal, and so in the model of its round.
- reopened: a closed round stays closed, with the model and the contributions it was closed with.
- ends: a run with enough live devices ends once the adversary is quiet, within a bound.
- equal: every model, and the file of the last one, is byte for byte that of the faultless run.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedclip_edge import ledger, model_file
from fedclip_edge.learning import methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.messaging import wire
from fedclip_edge.records import Contribution, Model, Update
from fedclip_edge.store import Run, StoredModel

VARIANTS = 2  # a device, and a copy of it with other pictures


class BrokenLawError(AssertionError):
    """A law does not hold."""

    def __init__(self, law: str, what: str) -> None:
        super().__init__(f"{law}: {what}")
        self.law = law


def update_of(model: Model, device: str, variant: int = 0) -> Update:
    """What a device makes of a model: cheap, of its own, and the same every time."""
    content = b"".join(model.terms[name].tobytes() for name in sorted(model.terms))
    return _update(content, tuple(sorted(model.terms)), device, variant)


@functools.lru_cache(maxsize=4096)
def _update(content: bytes, names: tuple[str, ...], device: str, variant: int) -> Update:
    digest = hashlib.sha256(content + f"{device}/{variant}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    weight = 1 + digest[8] % 3
    dim = int(np.sqrt(len(content) / 8 + 0.25))  # two square layers, and a bias to each
    shapes = {name: (dim, dim) if name.endswith("weight") else (dim,) for name in names}
    terms = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Update("sum", weight, terms)


@dataclass(eq=False)
class Laws:
    """The run as it should be, and what was said of it so far."""

    run: Run
    initial: Model
    models: list[StoredModel] = field(default_factory=list)  # by rounds closed
    closed_with: list[dict[str, str]] = field(default_factory=list)  # by round, from 1
    acknowledged: dict[tuple[int, str], str] = field(default_factory=dict)
    announced: int = 0  # rounds closed, in the newest manifest that anybody could have seen
    _model: Model = field(init=False)
    _open: tuple[dict[str, str], ExactSum] | None = None
    _made: dict[tuple[int, str, str], Update] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._model = self.initial
        self.models.append(ledger._stored(self.initial, {}, self.run.plan))

    def said(self, topic: str, payload: bytes) -> None:
        """A message that the coordinator lets out of its hands."""
        if payload.startswith(b'{"kind":"kept"'):
            body = json.loads(payload.partition(b"\n")[0])["body"]
            device = topic.split("/")[-2]
            known = self.acknowledged.setdefault((body["round"], device), body["sha256"])
            if known != body["sha256"]:
                raise BrokenLawError(
                    "twice", f"two contributions of {device} to round {body['round']}"
                )
        elif payload.startswith(b'{"kind":"manifest"'):
            self._said_manifest(json.loads(payload.partition(b"\n")[0])["body"])

    def _said_manifest(self, manifest: dict[str, Any]) -> None:
        closed, number, phase = manifest["model_round"], manifest["round"], manifest["phase"]
        if closed < self.announced or number < min(closed + 1, self.run.plan.rounds):
            raise BrokenLawError("reopened", f"round {number} after {self.announced} were closed")
        if phase in ("gathering", "open") and number != closed + 1:
            raise BrokenLawError("reopened", f"round {number} is {phase}, {closed} closed")
        self.announced = closed
        if closed < len(self.models) and self.models[closed].sha256 != manifest["model"]["sha256"]:
            raise BrokenLawError(
                "equal", f"the model of round {closed} is published with other bytes"
            )

    def check(self, books: ledger.Ledger) -> None:
        """The journal and the books on it, after a step that wrote or a restart."""
        store, run = books.store, self.run
        closed = store.rounds_closed(run.id)
        if closed < len(self.models) - 1 or closed < self.announced:
            raise BrokenLawError(
                "reopened", f"{closed} rounds closed on disk, {self.announced} said"
            )
        for number in range(1, closed + 1):
            kept = store.kept(run.id, number)
            if number < len(self.models):
                if kept != self.closed_with[number - 1]:
                    raise BrokenLawError("reopened", f"round {number} has other contributions now")
            else:
                self._close(number, kept)
        for (number, device), sha256 in self.acknowledged.items():
            known = store.kept(run.id, number) if number > closed else self.closed_with[number - 1]
            if known.get(device) != sha256:
                raise BrokenLawError(
                    "lost", f"{device}'s contribution to round {number}, acknowledged"
                )
        newest = store.newest_model(run.id)
        if (newest.sha256, newest.body) != (self.models[-1].sha256, self.models[-1].body):
            raise BrokenLawError("equal", f"the model that closes round {closed} has other bytes")
        if books.model.round == closed:
            self._check_sum(closed + 1, store.kept(run.id, closed + 1), books.total)

    def check_file(self, books: ledger.Ledger) -> None:
        """The file that the run leaves behind."""
        found = model_file.read(model_file.path_of(books.store.path, self.run.id)).model
        if found.round != self.run.plan.rounds or not _same(found, self._model):
            raise BrokenLawError("equal", "the model file differs from a faultless run's")

    def _close(self, number: int, kept: dict[str, str]) -> None:
        total = self._sum(number, kept)
        method = methods.get(self.run.plan.method)
        self._model, _ = method.combine(self._model, total, {})
        self.models.append(ledger._stored(self._model, {}, self.run.plan))
        self.closed_with.append(kept)
        self._open = None

    def _check_sum(self, number: int, kept: dict[str, str], total: ExactSum) -> None:
        if self._open is None or self._open[0] != kept:
            self._open = kept, self._sum(number, kept)
        expected = self._open[1]
        if total.weight != expected.weight:
            what = f"weight {total.weight} in the sum, {expected.weight} in the journal"
            raise BrokenLawError("twice" if total.weight > expected.weight else "lost", what)
        if any((total.terms[name] != term).any() for name, term in expected.terms.items()):
            raise BrokenLawError(
                "equal", f"the sum of round {number} is not that of its contributions"
            )

    def _sum(self, number: int, kept: dict[str, str]) -> ExactSum:
        total = ExactSum(self.run.plan)
        for device, sha256 in kept.items():
            made = number, device, sha256
            if made not in self._made:
                self._made[made] = self._contributed(*made)
            total.add(self._made[made])
        return total

    def _contributed(self, number: int, device: str, sha256: str) -> Update:
        for variant in range(VARIANTS):
            update = update_of(self._model, device, variant)
            contribution = Contribution(
                run=self.run.id,
                round=number,
                device=device,
                base=self.models[number - 1].sha256,
                encoder_id=self.run.encoder_id,
                classes_digest=self.run.classes_digest,
                update=update,
            )
            body = wire.pack_contribution(contribution, self.run.plan.codec_up)
            if hashlib.sha256(body).hexdigest() == sha256:
                return update
        raise BrokenLawError("equal", f"{device} never made what is kept of it for round {number}")


def _same(one: Model, other: Model) -> bool:
    return one.terms.keys() == other.terms.keys() and all(
        one.terms[name].tobytes() == other.terms[name].tobytes() for name in one.terms
    )
