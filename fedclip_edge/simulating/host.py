"""A host of virtual devices of one run: their data, training, uploads and evaluation.

A device's round runs the agent's code: `learning/local.py` trains, `store_within` encodes the
update and keeps what the codec lost for the next one, and `wire.pack_contribution` makes the
payload. The coordinator's code follows immediately: `codec.restore`, the checks of an update and an
exact sum. Only the payload's size is used: its tensors are not unpacked again, since packing loses
nothing. Partial sums are exact too, so the result does not depend on which host has which device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedclip_edge.agent.clipping import store_within
from fedclip_edge.agent.withholding import share
from fedclip_edge.errors import ConfigError, PeerError
from fedclip_edge.learning import local, methods
from fedclip_edge.learning.aggregation import norm_of
from fedclip_edge.learning.evaluation import Evaluation
from fedclip_edge.learning.local import Sides
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.learning.personal import personal
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.learning.strategy import Total
from fedclip_edge.learning.unknown import Separation
from fedclip_edge.protocol import codec, wire
from fedclip_edge.protocol.exchange import open_exchange
from fedclip_edge.records import (
    F32,
    I64,
    Arrays,
    ClassTexts,
    Contribution,
    Features,
    Layout,
    Model,
    Plan,
    Update,
)
from fedclip_edge.simulating.settings import Line
from fedclip_edge.simulating.spill import SpillFile
from fedclip_edge.simulating.splits import Device

NOISE = 100.0  # times the norm of an honest update, to dominate a mean over hundreds of devices


@dataclass(frozen=True, eq=False)
class View:
    """A set of classes to evaluate on; a run trains on the first of its views."""

    name: str  # empty, base or new
    classes: ClassTexts
    place: I64  # for each class of the pool its index in `classes`, or -1 if it is not in the view


@dataclass(frozen=True, eq=False)
class Task:
    """The settings of a run that every host needs."""

    run: str
    plan: Plan
    line: Line
    views: tuple[View, ...]
    encoder_id: str
    dim: int  # D
    min_per_class: int | None = None  # of every device, as in agent.toml; None withholds nothing


@dataclass(frozen=True, eq=False)
class Announcement:
    """The published model of a round; payload and version are empty if devices train alone."""

    payload: bytes
    version: str  # SHA-256 of the payload in hex
    closed: int  # exchanges of the run that are closed
    is_last: bool  # no device trains on it
    max_norm: float  # of an update in the next round


@dataclass(frozen=True, eq=False)
class Compared:
    """A device's own model beside the shared one and zero-shot CLIP, on the same pictures."""

    own: Evaluation
    shared: Evaluation | None  # None if devices train alone
    zero_shot: Evaluation


@dataclass(frozen=True, eq=False)
class Answer:
    """The result of one round on one host."""

    total: Total
    up_bytes: Mapping[str, int]  # payload size of each device that trained
    norms: Mapping[str, float]  # of the decoded delta of each, divided by its weight
    # By (device, view), for the devices with test pictures of the view.
    figures: Mapping[tuple[str, str], Evaluation]
    zero_shot: Mapping[tuple[str, str], Evaluation]  # only in the first answer: it never changes
    # Of the last model and of zero-shot CLIP, for the devices with test pictures of classes that
    # the run does not have.
    separation: Mapping[str, Separation]
    zero_shot_separation: Mapping[str, Separation]
    # Only in the last answer, for the devices that have a model of their own: on their own test
    # pictures, and on those of other devices. A real device never has the pictures of others.
    own_pictures: Mapping[tuple[str, str], Compared]
    other_pictures: Mapping[tuple[str, str], Compared]


@dataclass(frozen=True, eq=False)
class _Sides:
    train: Features
    validation: Features


@dataclass(eq=False)
class Host:
    """The devices of one run that live in one process."""

    task: Task
    devices: Sequence[Device]
    vectors: F32  # (N, D) of the whole pool
    labels: I64  # (N,)
    # By device: the residual of its last update or, if it trains alone, its model and state.
    _kept: SpillFile = field(default_factory=SpillFile)
    _start: local.Alone | None = None  # a device that trains alone, before its first round
    _measured_zero_shot: bool = False
    _schedule: Schedule | None = None
    _layout: Layout = field(default_factory=lambda: Layout({}, {}))  # of the open exchange
    _digest: str = ""

    def run_round(self, announced: Announcement) -> Answer:
        """Evaluate the announced model on every device, and train on it unless it is the last.

        If devices train alone (`line` is "local"), every device evaluates and trains its own model.
        Raises PeerError if the payload is not a model of the plan, DataError if the features do not
        fit the classes, and ConfigError if training diverges or an update exceeds the plan's
        bounds.
        """
        task = self.task
        total = self.schedule.total(announced.closed, announced.max_norm)
        up_bytes: dict[str, int] = {}
        norms: dict[str, float] = {}
        figures: dict[tuple[str, str], Evaluation] = {}
        zero_shot: dict[tuple[str, str], Evaluation] = {}
        separation: dict[str, Separation] = {}
        zero_shot_separation: dict[str, Separation] = {}
        own_pictures: dict[tuple[str, str], Compared] = {}
        other_pictures: dict[tuple[str, str], Compared] = {}
        model = (
            None if self.task.line == "local" else self._unpack(announced.payload, announced.closed)
        )
        for device in self.devices:
            alone = self._alone(device) if model is None else None
            given = alone.model if alone is not None else model
            assert given is not None
            own = self._own(device, given)
            shown = own or given
            for view in task.views:
                key = (device.name, view.name)
                test = self._features(device.test, view)
                if announced.is_last and own is not None:
                    others = self._features(device.others, view)
                    for its, found in ((test, own_pictures), (others, other_pictures)):
                        if len(its):
                            found[key] = _compare(own, model, its, view)
                if not len(test):
                    continue
                figures[key] = local.measure(shown, test, view.classes)
                if not self._measured_zero_shot:
                    zero_shot[key] = local.measure(zeroshot.MODEL, test, view.classes)
            if announced.is_last and len(others := self._others(device)):
                test = self._features(device.test, task.views[0])
                both = (test, others, self._classes)
                separation[device.name] = local.separate(shown, *both)
                zero_shot_separation[device.name] = local.separate(zeroshot.MODEL, *both)
            if announced.is_last or not len(device.train):
                continue
            if model is None:
                assert alone is not None
                alone.train(self._sides(device), device.name)
                self._kept.put(device.name, (alone.model, alone.server))
            elif self._trains(device):
                made = self._contribute(device, model, announced, total)
                up_bytes[device.name], norms[device.name] = made
        self._measured_zero_shot = True
        return Answer(
            total,
            up_bytes,
            norms,
            figures,
            zero_shot,
            separation,
            zero_shot_separation,
            own_pictures,
            other_pictures,
        )

    def _own(self, device: Device, model: Model) -> Model | None:
        """Return the device's own model; None if it has none. A device alone has `model` itself."""
        plan = self.task.plan
        if not len(device.train):
            return None
        own = model if self.task.line == "local" else None
        if plan.personal_epochs or methods.get(plan.method).personal:
            sides = self._sides(device)
            return personal(plan, model, sides, self._classes, device.name) or own
        return own

    @property
    def _classes(self) -> ClassTexts:
        return self.task.views[0].classes

    @property
    def schedule(self) -> Schedule:
        """The exchanges of the run."""
        if self._schedule is None:
            self._schedule = Schedule(self.task.plan, self._classes, self.task.dim)
        return self._schedule

    def _unpack(self, payload: bytes, closed: int) -> Model:
        self._digest = self._digest or self._classes.digest
        self._layout = self.schedule.layout(closed)
        return wire.unpack_model(payload, self.task.plan.codec_down, self._layout.parameters)

    def _contribute(
        self, device: Device, model: Model, announced: Announcement, total: Total
    ) -> tuple[int, float]:
        """Add the device's contribution to `total`; return its payload's bytes and its norm."""
        task, plan, max_norm = self.task, self.task.plan, announced.max_norm
        sides: Sides = self._sides(device)
        if task.min_per_class is not None:  # as the agent's trainer does
            floor = max(task.min_per_class, methods.min_per_class(plan))
            sides = self._shared(device, floor)
        schedule = self.schedule
        update = local.answer(schedule, model, sides, device.name)
        exchange = open_exchange(
            schedule.steps[model.round].kind,
            run=task.run,
            number=model.round + 1,
            model=announced.version,
            plan=plan,
            encoder_id=task.encoder_id,
            classes_digest=self._digest,
            max_norm=max_norm,
        )
        contribution = Contribution(
            run=task.run,
            round=model.round + 1,
            device=device.name,
            exchange=exchange.sha256,
            update=noise(update, max_norm, device.name) if device.sends_noise else update,
        )
        nothing: Arrays = {}
        before = self._kept.get(device.name, nothing)
        sent = contribution.update
        stored, residual = store_within(plan.codec_up, sent, before, max_norm)
        payload = wire.pack_contribution(contribution, plan.codec_up, stored)
        layout = self._layout
        received = replace(sent, delta=codec.restore(plan.codec_up, stored, layout.delta))
        if model.round + 1 < len(schedule.steps):
            self._kept.put(device.name, residual)
        try:
            schedule.check(model.round, received)
            norm = total.check(received)
        except PeerError as error:
            if device.sends_noise:
                return len(payload), 0.0  # a real coordinator refuses this noise as well
            weight = received.weight
            example = f" to {weight}: {plan.method}@max_weight={weight}"
            raise ConfigError(
                f"a coordinator would refuse the update of device {device.name}: {error}; raise "
                f"this limit in --methods{example if weight > plan.max_weight else ''}"
            ) from error
        total.add(received)
        return len(payload), norm

    def _alone(self, device: Device) -> local.Alone:
        if self._start is None:
            self._start = local.alone(self.task.plan, self._classes, self.task.dim)
        begun = (self._start.model, self._start.server)
        return local.Alone(self._start.schedule, *self._kept.get(device.name, begun))

    def _sides(self, device: Device) -> _Sides:
        view = self.task.views[0]
        return _Sides(self._features(device.train, view), self._features(device.validation, view))

    def _trains(self, device: Device) -> bool:
        """True if the device has training pictures that it does not withhold."""
        floor = self.task.min_per_class
        return floor is None or len(self._shared(device, floor).train) > 0

    def _shared(self, device: Device, min_per_class: int) -> Sides:
        sides = self._sides(device)
        return share(sides.train, sides.validation, len(self._classes.names), min_per_class)

    def _others(self, device: Device) -> Features:
        """Return the test pictures of classes that the run does not have, all with label 0."""
        rows = device.test[self.task.views[0].place[self.labels[device.test]] < 0]
        labels = np.zeros(len(rows), np.int64)
        return Features(np.array(self.vectors[rows]), labels, self.task.encoder_id)

    def _features(self, rows: I64, view: View) -> Features:
        places = view.place[self.labels[rows]]
        if (places < 0).any():
            rows, places = rows[places >= 0], places[places >= 0]
        return Features(np.array(self.vectors[rows]), places, self.task.encoder_id)


def _compare(own: Model, shared: Model | None, its: Features, view: View) -> Compared:
    return Compared(
        local.measure(own, its, view.classes),
        None if shared is None else local.measure(shared, its, view.classes),
        local.measure(zeroshot.MODEL, its, view.classes),
    )


def noise(update: Update, max_norm: float, seed: str) -> Update:
    """Make a random update like `update`, as a broken or hostile device might send it.

    The delta is drawn from a normal distribution and scaled to NOISE times the norm of the update's
    delta, but at most to 0.9 times `max_norm`, the largest that the round allows. Each array of
    sums is drawn uniformly from 0 to its largest number. Equal arguments give equal noise.
    """
    digest = hashlib.sha256(seed.encode())
    for term in update.delta.values():
        digest.update(np.ascontiguousarray(term).tobytes())
    random = np.random.default_rng(int.from_bytes(digest.digest()[:8], "big"))
    norm = min(NOISE * norm_of(update.delta), 0.9 * max_norm * update.weight)
    drawn = {name: random.standard_normal(term.shape) for name, term in update.delta.items()}
    length = float(np.sqrt(sum(float(np.square(its).sum()) for its in drawn.values())))
    terms = {
        name: np.asarray(norm / max(length, 1e-12) * its, np.float32) for name, its in drawn.items()
    }
    sums = {
        name: random.integers(0, int(its.max(initial=0)) + 1, its.shape)
        for name, its in update.sums.items()
    }
    return replace(update, delta=terms, sums=sums)
