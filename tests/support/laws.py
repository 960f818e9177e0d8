"""What must hold at every step of a run, whatever the adversary does; checked from outside.

The journal is read through the coordinator's own `Journal`, but what it should hold is worked out
anew: every device's update is a function of the model, of the device and of what the codec lost of
its last kept one, so a faultless run over the contributions that the journal names is computed
here from the initial model on.

Laws, as `BrokenLawError.law` names them:
- twice: the open round's sum holds each kept contribution once, and a device counts once a round.
- lost: what was acknowledged is in the journal, and so in the model of its round.
- reopened: a closed round stays closed, with the model and the contributions it was closed with.
- ends: a run with enough live devices ends once the adversary is quiet, within a bound, and for
  every device that took part in it.
- equal: every model, and the file of the last one, is byte for byte that of the faultless run.
- residual: a device's next update carries what its last kept one lost, once (device_laws.py).
- parked: what a device offers is on its disk.
- epochs: no device believes a manifest of an older epoch than it has believed before.

A journal that was lost, or replaced by an old copy, takes with it what it had; from there on the
laws hold again of what is left.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from broken_law import BrokenLawError
from device_laws import Made

from fedclip_edge import model_file
from fedclip_edge.coordinator import run_state
from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.coordinator.journal_tables import Run, StoredModel
from fedclip_edge.learning import methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.strategy import Total
from fedclip_edge.protocol import wire
from fedclip_edge.records import Model, Shapes


@dataclass(eq=False)
class Laws:
    """The run as it should be, and what was said of it so far."""

    run: Run
    initial: Model
    shapes: Shapes  # of its models, and of its updates: FedCLIP's are alike
    models: list[StoredModel] = field(default_factory=list)  # by rounds closed
    masters: list[Model] = field(default_factory=list)
    closed_with: list[dict[str, str]] = field(default_factory=list)  # by round, from 1
    acknowledged: dict[tuple[int, str], str] = field(default_factory=dict)
    made: dict[tuple[str, str], Made] = field(default_factory=dict)  # by device and hash
    known: dict[str, int] = field(default_factory=dict)  # by version: rounds closed in that model
    announced: int = 0  # rounds closed, in the newest manifest that anybody could have seen
    epoch: int = 0  # of that
    _kept: dict[str, str] = field(default_factory=dict)  # in the open round
    _open: tuple[dict[str, str], ExactSum] | None = None
    _received: dict[str, Model] = field(default_factory=dict)  # by version, as devices have it
    _ever: set[tuple[str, str]] = field(default_factory=set)  # acknowledged, by any journal

    def __post_init__(self) -> None:
        self._add(self.initial)

    def received(self, version: str) -> Model:
        """A model that was published, as devices have it."""
        return self._received[version]

    def keeps(self, device: str, number: int, sha256: str) -> bool:
        """Whether the journal had this contribution when it was last looked at."""
        closed = number <= len(self.closed_with)
        return (self.closed_with[number - 1] if closed else self._kept).get(device) == sha256

    def was_acknowledged(self, device: str, number: int, sha256: str) -> bool:
        """Whether the coordinator ever said so."""
        return (device, sha256) in self._ever

    def said(self, topic: str, payload: bytes, journal: Journal) -> None:
        """A message that a coordinator on that journal lets out of its hands."""
        if payload.startswith(b'{"kind":"kept"'):
            body = json.loads(payload.partition(b"\n")[0])["body"]
            device = topic.split("/")[-2]
            known = self.acknowledged.setdefault((body["round"], device), body["sha256"])
            self._ever.add((device, body["sha256"]))
            if known != body["sha256"]:
                raise BrokenLawError(
                    "twice", f"two contributions of {device} to round {body['round']}"
                )
        elif payload.startswith(b'{"kind":"manifest"'):
            self._said_manifest(json.loads(payload.partition(b"\n")[0])["body"], journal)

    def _said_manifest(self, manifest: dict[str, Any], journal: Journal) -> None:
        if manifest["run"] != self.run.id or manifest["epoch"] < self.epoch:
            return  # of one that another took over from: no device believes it
        self.epoch = manifest["epoch"]
        closed, number, phase = manifest["model_round"], manifest["round"], manifest["phase"]
        if closed < self.announced or number < min(closed + 1, self.run.plan.rounds):
            raise BrokenLawError("reopened", f"round {number} after {self.announced} were closed")
        if phase in ("gathering", "open") and number != closed + 1:
            raise BrokenLawError("reopened", f"round {number} is {phase}, {closed} closed")
        self.announced = closed
        if closed >= len(self.models):
            self.check(journal)
        if closed < len(self.models) and self.models[closed].sha256 != manifest["model"]["sha256"]:
            raise BrokenLawError(
                "equal", f"the model of round {closed} is published with other bytes"
            )

    def check(self, journal: Journal) -> None:
        """The journal, after a step that wrote or a restart."""
        run = self.run
        closed = journal.rounds_closed(run.id)
        if closed < len(self.models) - 1 or closed < self.announced:
            raise BrokenLawError(
                "reopened", f"{closed} rounds closed on disk, {self.announced} said"
            )
        for number in range(1, closed + 1):
            kept = journal.kept(run.id, number)
            if number < len(self.models):
                if kept != self.closed_with[number - 1]:
                    raise BrokenLawError("reopened", f"round {number} has other contributions now")
            else:
                self._close(number, kept)
        self._kept = journal.kept(run.id, closed + 1)
        for (number, device), sha256 in self.acknowledged.items():
            known = self._kept if number > closed else self.closed_with[number - 1]
            if known.get(device) != sha256:
                raise BrokenLawError(
                    "lost", f"{device}'s contribution to round {number}, acknowledged"
                )
        newest = journal.newest_model(run.id)
        if (newest.sha256, newest.payload) != (self.models[-1].sha256, self.models[-1].payload):
            raise BrokenLawError("equal", f"the model that closes round {closed} has other bytes")

    def check_run_state(self, state: run_state.RunState) -> None:
        """The journal, and the sum that a coordinator holds on it."""
        self.check(state.journal)
        number = len(self.models)
        if state.model.round == number - 1:
            self._check_sum(number, self._kept, state.total)

    def check_file(self, state: run_state.RunState) -> None:
        """The file that the run leaves behind."""
        found = model_file.read(model_file.path_of(state.journal.path, self.run.id)).model
        if found.round != self.run.plan.rounds or not _same(found, self.masters[-1]):
            raise BrokenLawError("equal", "the model file differs from a faultless run's")

    def journal_replaced(self, journal: Journal) -> None:
        """The journal is an old copy of itself: what came after it is gone."""
        run = self.run.id
        closed = journal.rounds_closed(run)
        del self.models[closed + 1 :], self.masters[closed + 1 :], self.closed_with[closed:]
        kept = {number: journal.kept(run, number) for number in range(1, closed + 2)}
        self.acknowledged = {
            (number, device): sha256
            for (number, device), sha256 in self.acknowledged.items()
            if kept.get(number, {}).get(device) == sha256
        }
        self.announced, self.epoch, self._open = closed, 0, None

    def _close(self, number: int, kept: dict[str, str]) -> None:
        total = self._sum(number, kept)
        method = methods.get(self.run.plan.method)
        model, _ = method.combine(self.masters[-1], total, {})
        self._add(model)
        self.closed_with.append(kept)
        self._open = None

    def _add(self, model: Model) -> None:
        stored, codec = run_state.stored_model(model, {}, self.run.plan), self.run.plan.codec_down
        self.masters.append(model)
        self.models.append(stored)
        self.known[stored.sha256] = model.round
        self._received[stored.sha256] = wire.unpack_model(stored.payload, codec, self.shapes)

    def _check_sum(self, number: int, kept: dict[str, str], total: Total) -> None:
        if self._open is None or self._open[0] != kept:
            self._open = kept, self._sum(number, kept)
        expected = self._open[1]
        assert isinstance(total, ExactSum)
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
            made = self.made.get((device, sha256))
            if made is None or made.base != self.models[number - 1].sha256:
                what = f"{device} never made what is kept of it for round {number}"
                raise BrokenLawError("equal", what)
            total.add(made.update)
        return total


def _same(one: Model, other: Model) -> bool:
    return one.parameters.keys() == other.parameters.keys() and all(
        one.parameters[name].tobytes() == other.parameters[name].tobytes()
        for name in one.parameters
    )
