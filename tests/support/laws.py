"""Laws that must hold at every step of a run under the adversary; checked from outside.

The journal is read through the coordinator's own `Journal`, but its expected contents are computed
independently. Every device's update is a function of the model, the device and the residual of its
last kept update. So the faultless run over the contributions that the journal names can be computed
from the initial model.

The laws, by the name in `BrokenLawError.law`:
- twice: the sum of the open round has each kept contribution once, and a device counts once a
  round.
- lost: an acknowledged contribution is in the journal, and so in the model of its round.
- reopened: a closed round stays closed, with the same model and the same contributions.
- ends: a run with enough live devices ends within a bound after the last fault, also for every
  device that took part, as long as the broker still has the manifest that says so. A device that
  knows a later epoch than every coordinator that is left is no exception.
- progress: with enough live devices, each round closes within a bound after the one before,
  whatever the other members of the fleet do (progress.py).
- flood: of a flood, a process handles no more than one sender's share of its queue, and a
  coordinator does not listen to its sender for MUTED_S (bad_network.py).
- equal: every model, and the file of the last one, equals that of the faultless run byte for byte.
  A vote that fewer devices answer than any cohort of the fleet needs may also end with the default.
- forgotten: the journal has no contribution of a device that the operator forgot. The models of
  this run are then those of a fleet that never had it: they have to be "equal" to those of the
  faultless run over the other devices' contributions. Their votes may be gone.
- residual: a device's next update has the residual of its last kept one, once (device_laws.py).
- parked: a device offers only what is on its disk.
- epochs: no device believes a manifest of an older epoch than one it has believed before.

If the journal is lost or replaced by an old copy, its later contents are lost with it. The laws
then apply to the rest.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import safetensors.numpy
from broken_law import BrokenLawError
from device_laws import Made

from fedclip_edge import model_file
from fedclip_edge.coordinator import run_state
from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.coordinator.journal_tables import Run, StoredModel
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.learning.strategy import State, Total
from fedclip_edge.protocol import wire
from fedclip_edge.records import Model


@dataclass(eq=False)
class Laws:
    """The expected run, and the messages about it so far."""

    run: Run
    initial: Model
    schedule: Schedule
    trainers: int  # devices of the fleet that train
    quorum: float
    models: list[StoredModel] = field(default_factory=list)  # by number of closed exchanges
    masters: list[Model] = field(default_factory=list)
    closed_with: list[dict[str, str]] = field(default_factory=list)  # by round, from 1
    acknowledged: dict[tuple[int, str], str] = field(default_factory=dict)
    made: dict[tuple[str, str], Made] = field(default_factory=dict)  # by device and hash
    known: dict[str, int] = field(default_factory=dict)  # by version: number of closed rounds
    # By hash of an exchange: version of its model, and its bound.
    exchanges: dict[str, tuple[str, float]] = field(default_factory=dict)
    announced: int = 0  # closed rounds in the newest manifest that was sent
    epoch: int = 0  # of that manifest
    forgotten: frozenset[str] = frozenset()
    _kept: dict[str, str] = field(default_factory=dict)  # of the open round
    _open: tuple[dict[str, str], ExactSum] | None = None
    _state: State = field(default_factory=dict)  # of the coordinator, after the last exchange
    _received: dict[str, Model] = field(default_factory=dict)  # by version, as devices receive it
    _ever: set[tuple[str, str]] = field(default_factory=set)  # acknowledged, with any journal

    def __post_init__(self) -> None:
        self._add(self.initial)

    def received(self, version: str) -> Model:
        """A published model as devices receive it."""
        return self._received[version]

    def keeps(self, device: str, number: int, sha256: str) -> bool:
        """True if the journal had this contribution at the last check."""
        closed = number <= len(self.closed_with)
        return (self.closed_with[number - 1] if closed else self._kept).get(device) == sha256

    def was_acknowledged(self, device: str, number: int, sha256: str) -> bool:
        """True if a coordinator has acknowledged this contribution at any time."""
        return (device, sha256) in self._ever

    def said(self, topic: str, payload: bytes, journal: Journal) -> None:
        """Check a message that a coordinator with that journal sends."""
        if payload.startswith(b'{"kind":"kept"'):
            body = json.loads(payload.partition(b"\n")[0])["body"]
            device = topic.split("/")[-2]
            known = self.acknowledged.setdefault((body["number"], device), body["sha256"])
            self._ever.add((device, body["sha256"]))
            if known != body["sha256"]:
                raise BrokenLawError(
                    "twice", f"two acknowledged contributions of {device} to round {body['number']}"
                )
        elif payload.startswith(b'{"kind":"manifest"'):
            self._said_manifest(json.loads(payload.partition(b"\n")[0])["body"], journal)

    def _said_manifest(self, manifest: dict[str, Any], journal: Journal) -> None:
        if manifest["run"] != self.run.id or manifest["epoch"] < self.epoch:
            return  # from a coordinator that was taken over: no device believes it
        self.epoch = manifest["epoch"]
        self._follow(journal)
        exchange, closed, phase = manifest["exchange"], manifest["closed"], manifest["phase"]
        number = exchange["number"]
        self.exchanges[exchange["sha256"]] = manifest["model"]["sha256"], exchange["max_norm"]
        if closed < self.announced or number < min(closed + 1, len(self.schedule.steps)):
            raise BrokenLawError(
                "reopened", f"round {number} is announced after {self.announced} were closed"
            )
        if phase in ("gathering", "open") and number != closed + 1:
            raise BrokenLawError(
                "reopened", f"round {number} is {phase} with {closed} rounds closed"
            )
        self.announced = closed
        if closed >= len(self.models):
            self.check(journal)
        if closed < len(self.models) and self.models[closed].sha256 != manifest["model"]["sha256"]:
            raise BrokenLawError(
                "equal", f"the model of round {closed} is published with other bytes"
            )

    def check(self, journal: Journal) -> None:
        """Check the journal after a commit or a restart."""
        self._follow(journal)
        run = self.run
        closed = journal.rounds.closed(run.id)
        if closed < len(self.models) - 1 or closed < self.announced:
            raise BrokenLawError(
                "reopened", f"{closed} rounds closed on disk, {self.announced} announced"
            )
        for number in range(1, closed + 2):
            if found := self.forgotten & journal.contributions.kept(run.id, number).keys():
                raise BrokenLawError("forgotten", f"round {number} has contributions of {found}")
        for number in range(1, closed + 1):
            kept = journal.contributions.kept(run.id, number)
            if number < len(self.models):
                if kept != self.closed_with[number - 1]:
                    raise BrokenLawError("reopened", f"round {number} has other contributions now")
            else:
                self._close(number, kept, journal)
        self._kept = journal.contributions.kept(run.id, closed + 1)
        for (number, device), sha256 in self.acknowledged.items():
            known = self._kept if number > closed else self.closed_with[number - 1]
            if known.get(device) != sha256:
                raise BrokenLawError(
                    "lost", f"{device}'s acknowledged contribution to round {number} is missing"
                )
        newest = journal.rounds.newest_model(run.id)
        if (newest.sha256, newest.payload) != (self.models[-1].sha256, self.models[-1].payload):
            raise BrokenLawError("equal", f"the model that closes round {closed} has other bytes")

    def _follow(self, journal: Journal) -> None:
        """Follow the operator, who has changed the number of rounds or forgotten a device."""
        run = journal.runs.last()
        if run is not None and run.id == self.run.id and run.plan != self.run.plan:
            self.run, self.schedule = run, self.schedule.with_rounds(run.plan.rounds)
        for device in journal.devices.forgotten(self.run.id) - self.forgotten:
            self._forget(device, journal)

    def _forget(self, device: str, journal: Journal) -> None:
        """Begin the faultless run again, without a device whose contributions counted in it."""
        self.forgotten |= {device}

        def is_left(number: int, other: str, sha256: str) -> bool:
            is_vote = self.schedule.steps[number - 1].kind == "vote"
            is_there = journal.contributions.kept(self.run.id, number).get(other) == sha256
            return other != device and (is_there or not is_vote)

        self.acknowledged = {
            (number, other): sha256
            for (number, other), sha256 in self.acknowledged.items()
            if is_left(number, other, sha256)
        }
        self._open = None
        if any(device in kept for kept in self.closed_with):
            self._begin_again()

    def _begin_again(self) -> None:
        del self.models[1:], self.masters[1:], self.closed_with[:]
        self.announced, self._open, self._state = 0, None, {}

    def check_run_state(self, state: run_state.RunState) -> None:
        """Check the journal, and the coordinator's sum of the open round."""
        self.check(state.journal)
        number = len(self.models)
        # A run that the operator has ended may have left a round open, whose payloads are deleted.
        is_over = state.journal.runs.course(state.run.id).is_over
        if state.model.round == number - 1 and not is_over:
            self._check_sum(number, self._kept, state.total)

    def check_file(self, state: run_state.RunState, exchanges: int) -> None:
        """Check the model file at the end of the run, after so many exchanges."""
        found = model_file.read(model_file.path_of(state.journal.path, self.run.id)).model
        if found.round != exchanges or not _same(found, self.masters[-1]):
            raise BrokenLawError("equal", "the model file differs from a faultless run's")

    def journal_replaced(self, journal: Journal) -> None:
        """Forget what came after the old copy that the journal was replaced with."""
        run = self.run.id
        closed = journal.rounds.closed(run)
        if self.forgotten != journal.devices.forgotten(run):
            self.forgotten = journal.devices.forgotten(run)
            self._begin_again()
        del self.models[closed + 1 :], self.masters[closed + 1 :], self.closed_with[closed:]
        kept = {number: journal.contributions.kept(run, number) for number in range(1, closed + 2)}
        self.acknowledged = {
            (number, device): sha256
            for (number, device), sha256 in self.acknowledged.items()
            if kept.get(number, {}).get(device) == sha256
        }
        self.announced, self.epoch, self._open = closed, 0, None
        self._state = safetensors.numpy.load(journal.rounds.newest_model(run).server_state)

    def _close(self, number: int, kept: dict[str, str], journal: Journal) -> None:
        total, before = self._sum(number, kept), self.masters[-1]
        model, state = self.schedule.close(before, total, self._state)
        if self.schedule.steps[number - 1].kind == "vote":
            # The journal does not name the cohort, so a vote may have had no quorum. With answers
            # of so many devices every cohort had one.
            had_quorum = len(kept) >= math.ceil(self.quorum * self.trainers)
            default, _ = self.schedule.close(before, total, self._state, decided=False)
            if not had_quorum and self._published(default).payload == (
                journal.rounds.newest_model(self.run.id).payload
            ):
                model = default
        self._state = state
        self._add(model)
        self.closed_with.append(kept)
        self._open = None

    def _add(self, model: Model) -> None:
        stored, codec = self._published(model), self.run.plan.codec_down
        shapes = self.schedule.layout(model.round).parameters
        self.masters.append(model)
        self.models.append(stored)
        self.known[stored.sha256] = model.round
        self._received[stored.sha256] = wire.unpack_model(stored.payload, codec, shapes)

    def _published(self, model: Model) -> StoredModel:
        return run_state.stored_model(model, {}, self.run.plan)

    def _check_sum(self, number: int, kept: dict[str, str], total: Total) -> None:
        if self._open is None or self._open[0] != kept:
            self._open = kept, self._sum(number, kept)
        expected = self._open[1]
        assert isinstance(total, ExactSum)
        if total.weight != expected.weight:
            what = f"weight {total.weight} in the sum, {expected.weight} in the journal"
            raise BrokenLawError("twice" if total.weight > expected.weight else "lost", what)
        got = {**total.terms, **total.sums}
        every = {**expected.terms, **expected.sums}
        if got.keys() != every.keys() or any((got[n] != term).any() for n, term in every.items()):
            raise BrokenLawError(
                "equal", f"the sum of round {number} is not the sum of its contributions"
            )

    def _sum(self, number: int, kept: dict[str, str]) -> ExactSum:
        total = self.schedule.total(number - 1, self.run.plan.max_norm)
        assert isinstance(total, ExactSum)
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
