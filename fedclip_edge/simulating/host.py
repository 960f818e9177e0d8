"""A host of virtual devices of one run: their data, training, uploads and evaluation.

A device's round runs the agent's code: `learning/local.py` trains, and `upload.encode` packs the
update and keeps what the codec lost for the next one. The coordinator's code follows immediately:
`wire.unpack_contribution` and an exact sum. Partial sums are exact too, so the result does not
depend on which host has which device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedclip_edge.agent import upload
from fedclip_edge.agent.withholding import share
from fedclip_edge.errors import ConfigError, PeerError
from fedclip_edge.learning import local, methods, strategies
from fedclip_edge.learning.aggregation import norm_of
from fedclip_edge.learning.evaluation import Evaluation
from fedclip_edge.learning.local import Sides
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.learning.personal import personal
from fedclip_edge.learning.strategy import Total
from fedclip_edge.learning.update_check import check_update
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.exchange import open_round
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
    _residuals: dict[str, Arrays] = field(default_factory=dict)
    _alone: dict[str, local.Alone] = field(default_factory=dict)
    _measured_zero_shot: bool = False
    _layout: Layout | None = None
    _digest: str = ""

    def run_round(self, announced: Announcement) -> Answer:
        """Evaluate the announced model on every device, and train on it unless it is the last.

        If devices train alone (`line` is "local"), every device evaluates and trains its own model.
        Raises PeerError if the payload is not a model of the plan, DataError if the features do not
        fit the classes, and ConfigError if training diverges or an update exceeds the plan's
        bounds.
        """
        task, plan = self.task, self.task.plan
        total = strategies.total(plan, announced.max_norm)
        up_bytes: dict[str, int] = {}
        norms: dict[str, float] = {}
        figures: dict[tuple[str, str], Evaluation] = {}
        zero_shot: dict[tuple[str, str], Evaluation] = {}
        own_pictures: dict[tuple[str, str], Compared] = {}
        other_pictures: dict[tuple[str, str], Compared] = {}
        model = None if self.task.line == "local" else self._unpack(announced.payload)
        for device in self.devices:
            own = self._own(device, model)
            shown = own or model or self._of(device).model
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
            if announced.is_last or not len(device.train):
                continue
            if model is None:
                self._of(device).train(self._sides(device), self._classes, device.name)
            elif self._trains(device):
                made = self._contribute(device, model, announced, total)
                up_bytes[device.name], norms[device.name] = made
        self._measured_zero_shot = True
        return Answer(total, up_bytes, norms, figures, zero_shot, own_pictures, other_pictures)

    def _own(self, device: Device, model: Model | None) -> Model | None:
        """Return the device's own model; None if it has none. `model` is the shared one, if any."""
        if not len(device.train):
            return None
        if model is None:
            return self._of(device).model
        plan = self.task.plan
        if not (plan.personal_epochs or methods.get(plan.method).traits.is_personal):
            return None
        return personal(plan, model, self._sides(device), self._classes, device.name)

    @property
    def _classes(self) -> ClassTexts:
        return self.task.views[0].classes

    def _unpack(self, payload: bytes) -> Model:
        if self._layout is None:
            self._layout = methods.plan_layout(self.task.plan, self._classes, self.task.dim)
            self._digest = self._classes.digest
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
        update = local.fit(plan, model, sides, self._classes, device.name)
        exchange = open_round(
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
        before = self._residuals.get(device.name, {})
        payload, residual = upload.encode(contribution, plan, before, max_norm)
        layout = self._layout
        assert layout is not None
        received = wire.unpack_contribution(payload, plan.codec_up, layout.delta, layout.sums)
        if model.round + 1 < plan.rounds:
            self._residuals[device.name] = residual
        try:
            check_update(plan, received.update)
            norm = total.check(received.update)
        except PeerError as error:
            if device.sends_noise:
                return len(payload), 0.0  # a real coordinator refuses this noise as well
            weight = received.update.weight
            example = f" to {weight}: {plan.method}@max_weight={weight}"
            raise ConfigError(
                f"a coordinator would refuse the update of device {device.name}: {error}; raise "
                f"this limit in --methods{example if weight > plan.max_weight else ''}"
            ) from error
        total.add(received.update)
        return len(payload), norm

    def _of(self, device: Device) -> local.Alone:
        if device.name not in self._alone:
            alone = local.alone(self.task.plan, self._classes, self.task.dim)
            self._alone[device.name] = alone
        return self._alone[device.name]

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
