"""The learner of a device: it knows the device's pictures, and has the work done by others.

Law: what it sends about the pictures are their numbers, after withholding (`withholding.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fedclip_edge import __version__, log
from fedclip_edge.agent.features import DevicePictures, Sides
from fedclip_edge.agent.withholding import Numbers, count_shared, log_withheld
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods
from fedclip_edge.learning.schedule import Schedules
from fedclip_edge.protocol.codec import CODECS
from fedclip_edge.protocol.message_parts import MAX_CLASSES, SIDES, Capabilities, Pictures
from fedclip_edge.protocol.report import Report
from fedclip_edge.records import ClassTexts, Measured, Model, Plan, Role, Shapes, Update
from fedclip_edge.transport.base import Traffic


def allowed_methods(config: AgentConfig) -> tuple[str, ...]:
    """Names of the methods that the device's owner allows.

    Raises ConfigError for a name in agent.toml that is no method; it suggests the nearest one.
    """
    names = methods.names() if config.methods is None else config.methods
    for name in names:
        try:
            methods.get(name)
        except ConfigError as error:
            raise ConfigError(f"methods: {error}") from None
    return names


class Work(Protocol):
    """Training and evaluation on a device's features: `training.py`, or its process."""

    def fit(self, model: Model, plan: Plan, floor: int) -> tuple[Update, float]:
        """Make an update and measure the seconds, as `Training.fit`."""

    def evaluate(self, model: Model, plan: Plan, final: bool) -> Measured:
        """Evaluate a model, as `Training.evaluate`."""

    def use(self, sides: Sides) -> None:
        """Work with the features of other pictures from now on."""


@dataclass(eq=False)
class LocalTrainer:
    """The learner (`learner.py`) of one device."""

    config: AgentConfig
    classes: ClassTexts
    dim: int  # feature width D
    data: DevicePictures
    traffic: Callable[[], Traffic | None]
    work: Work
    train_s: float = 0.0  # seconds in `fit` so far, without starting a process and loading torch
    busy_s: float = 0.0  # seconds in `fit` and `evaluate` so far
    _shared: Numbers | None = None  # for the floor of the last plan
    _schedules: Schedules = field(init=False)

    def __post_init__(self) -> None:
        self._schedules = Schedules(self.classes, self.dim)

    @property
    def evaluates(self) -> bool:
        """True if the device has the role "evaluate", and test pictures now."""
        return bool(self.data.sides.test)

    def use(self, data: DevicePictures) -> None:
        """Train and evaluate on other pictures from now on."""
        self.data, self._shared = data, None
        self.work.use(data.sides)

    def capabilities(self) -> Capabilities:
        """Find the device's capabilities, and log pictures that are withheld from all plans.

        Raises ConfigError if `methods` in agent.toml has an unknown name.
        """
        trains = "train" in self.config.roles
        shared = self._share(self.config.min_per_class if trains else 1)  # else it sends no update
        roles: list[Role] = []
        if trains and shared.train.any():
            roles.append("train")
        elif trains:
            reason, hint = self._reason_not_to_train()
            log.event("not_training", reason=reason, hint=hint)
        if self.evaluates and self.config.reports:
            roles.append("evaluate")
        elif "evaluate" in self.config.roles and not self.evaluates:
            log.event(
                "not_evaluating",
                reason="no labelled picture is on the test side",
                hint="label pictures, or raise the share 'test' under [data] in agent.toml",
            )
        return Capabilities(
            roles=tuple(roles),
            methods=allowed_methods(self.config),
            codecs=tuple(CODECS),
            min_per_class=self.config.min_per_class,
            pictures=Pictures(
                train=int(shared.train.sum()),
                validation=int(shared.validation.sum()),
                test=len(self.data.sides.test),
                withheld=int(shared.withheld.sum()),
                by_class=self._by_class(shared) if self.config.reports else {},
            ),
            provider=self.config.encoder.label,
            version=__version__,
        )

    def _reason_not_to_train(self) -> tuple[str, str]:
        """The reason why this device trains on nothing now, and what to do."""
        if not self.data.sides.train:
            return (
                "no labelled picture is on the training side",
                "label pictures, or raise the share 'train' under [data] in agent.toml",
            )
        return (
            f"no class has {self.config.min_per_class} pictures to train on",
            "add pictures, or lower min_per_class in agent.toml",
        )

    def _by_class(self, shared: Numbers) -> dict[str, tuple[int, ...]]:
        """Count the pictures of each class on each side; none if a hello cannot hold so many."""
        classes = len(self.classes.names)
        if classes > MAX_CLASSES:
            return {}
        tested = np.bincount(self.data.labels("test"), minlength=classes)  # (C,)
        counts = zip(SIDES, (shared.train, shared.validation, tested), strict=True)
        return {side: tuple(count.tolist()) for side, count in counts}

    def needed(self) -> Iterator[str]:
        """Yield the hashes of the pictures that the device trains and evaluates on."""
        for side in (self.data.sides.train, self.data.sides.validation, self.data.sides.test):
            yield from (picture.hash for picture in side)

    def shapes(self, plan: Plan, closed: int) -> Shapes:
        return self._schedules.of(plan).layout(closed).parameters

    def fit(self, model: Model, plan: Plan) -> Update:
        began = time.monotonic()
        floor = max(self.config.min_per_class, methods.min_per_class(plan))
        self._share(floor)
        try:
            made, took_s = self.work.fit(model, plan, floor)
        finally:  # also if nobody wants the result any more
            self.busy_s += time.monotonic() - began
        self.train_s += took_s
        return made

    def evaluate(self, model: Model, plan: Plan, *, final: bool) -> Measured:
        began = time.monotonic()
        try:
            return self.work.evaluate(model, plan, final)
        finally:
            self.busy_s += time.monotonic() - began

    def report(
        self, run: str, model: Model, version: str, measured: Measured, wait_s: float
    ) -> Report:
        traffic = self.traffic()
        return Report(
            run=run,
            round=model.round,
            device=self.config.id,
            domain=self.config.domain,
            model=version,
            accuracy=measured.accuracy,
            train_pictures=len(self.data.sides.train),
            test_pictures=measured.test_pictures,
            encoded=self.data.encoded,
            skipped=self.data.skipped,
            bytes_up=None if traffic is None else traffic.up_bytes,
            bytes_down=None if traffic is None else traffic.down_bytes,
            encode_s=self.data.encode_s,
            train_s=self.train_s,
            wait_s=wait_s,
            per_class=measured.per_class,
        )

    def _share(self, min_per_class: int) -> Numbers:
        """Withhold classes with fewer pictures, and log it when the withheld pictures change."""
        before = self._shared
        if before is not None and before.min_per_class == min_per_class:
            return before
        count = len(self.classes.names)
        train, validation = self.data.labels("train"), self.data.labels("validation")
        shared = count_shared(train, validation, count, min_per_class)
        already = np.zeros_like(shared.withheld) if before is None else before.withheld  # (C,)
        if not np.array_equal(shared.withheld, already):
            log_withheld(shared, self.classes.names)
        self._shared = shared
        return shared
