"""The learner of a device: training and evaluation on the device's own features.

Two results stay on the device, in its state_dir: predictions.csv and personal.safetensors.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedclip_edge import log, model_file
from fedclip_edge.agent.features import DeviceFeatures
from fedclip_edge.agent.withholding import Shared, log_withheld, share
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import local, methods
from fedclip_edge.learning.evaluation import evaluate, top1
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.learning.personal import personal
from fedclip_edge.learning.schedule import Schedule, exchanges
from fedclip_edge.learning.unknown import rule_of
from fedclip_edge.protocol.codec import CODECS
from fedclip_edge.protocol.messages import MAX_CLASSES, SIDES, Capabilities, Pictures
from fedclip_edge.protocol.report import Report
from fedclip_edge.records import (
    F32,
    ClassTexts,
    Measured,
    Model,
    Plan,
    Role,
    Shapes,
    Update,
)
from fedclip_edge.storage import atomic
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


def _nothing() -> None:
    """Load nothing: torch is loaded already, or is not needed."""


@dataclass(eq=False)
class LocalTrainer:
    """The learner (`learner.py`) of one device."""

    config: AgentConfig
    classes: ClassTexts
    dim: int  # feature width D
    data: DeviceFeatures
    traffic: Callable[[], Traffic | None]
    load: Callable[[], None] = _nothing  # called before training by gradients, which needs torch
    train_s: float = 0.0  # seconds in `fit` so far, without loading torch
    busy_s: float = 0.0  # seconds in `fit` and `evaluate` so far
    _shared: Shared | None = None  # for the floor of the last plan
    _scheduled: Schedule | None = None  # of the last plan

    def use(self, data: DeviceFeatures) -> None:
        """Train and evaluate on other features from now on."""
        self.data, self._shared = data, None

    def capabilities(self) -> Capabilities:
        """Find the device's capabilities, and log pictures that are withheld from all plans.

        Raises ConfigError if `methods` in agent.toml has an unknown name.
        """
        trains = "train" in self.config.roles
        shared = self._share(self.config.min_per_class if trains else 1)  # else it sends no update
        roles: list[Role] = []
        if trains and len(shared.train):
            roles.append("train")
        elif trains:
            log.event(
                "not_training",
                reason=f"no class has {self.config.min_per_class} pictures to train on",
                hint="add pictures, or lower min_per_class in agent.toml",
            )
        if "evaluate" in self.config.roles and self.config.reports:
            roles.append("evaluate")
        return Capabilities(
            roles=tuple(roles),
            methods=allowed_methods(self.config),
            codecs=tuple(CODECS),
            min_per_class=self.config.min_per_class,
            pictures=Pictures(
                train=len(shared.train),
                validation=len(shared.validation),
                test=len(self.data.test),
                withheld=int(shared.withheld.sum()),
                by_class=self._by_class(shared) if self.config.reports else {},
            ),
            provider=self.config.encoder.label,
        )

    def _by_class(self, shared: Shared) -> dict[str, tuple[int, ...]]:
        """Count the pictures of each class on each side; none if a hello cannot hold so many."""
        classes = len(self.classes.names)
        if classes > MAX_CLASSES:
            return {}
        sides = zip(SIDES, (shared.train, shared.validation, self.data.test), strict=True)
        return {
            side: tuple(np.bincount(features.labels, minlength=classes).tolist())
            for side, features in sides
        }

    def shapes(self, plan: Plan, closed: int) -> Shapes:
        return self._schedule(plan).layout(closed).parameters

    def fit(self, model: Model, plan: Plan) -> Update:
        began = time.monotonic()
        self._load_for(plan)
        loaded = time.monotonic()
        made = self._fit(model, plan)
        ended = time.monotonic()
        self.train_s += ended - loaded
        self.busy_s += ended - began
        return made

    def evaluate(self, model: Model, plan: Plan, *, final: bool) -> Measured:
        """Evaluate the model, zero-shot and any personal model on the test pictures.

        Accuracies, F1 and ECE are fractions, and so is the share of the pictures that a model with
        a threshold calls unknown. With `final` the result also has the accuracy for each class, the
        zero-shot accuracy on all pictures and, if the plan asks for it, the accuracy of a model
        trained on this device alone. `final` also writes predictions.csv and, if there is a
        personal model, personal.safetensors.

        Raises ConfigError for an unknown method or option, OSError if a file cannot be written.
        """
        began = time.monotonic()
        compares = final and plan.local_baseline
        keeps_own = plan.personal_epochs or methods.get(plan.method).personal
        if "train" in self.config.roles and (compares or keeps_own):
            self._load_for(plan)
        test = self.data.test
        logits = {  # float32 (N, C) each
            "zero_shot": methods.predict(zeroshot.MODEL, test.vectors, self.classes),
            "federated": methods.predict(model, test.vectors, self.classes),
        }
        if compares and "train" in self.config.roles:
            alone = self._train_alone(plan)
            logits["local"] = methods.predict(alone, test.vectors, self.classes)
        own = self._personal(model, plan)
        if own is not None:
            logits["personal"] = methods.predict(own, test.vectors, self.classes)
        found = {name: evaluate(values, test.labels) for name, values in logits.items()}
        accuracy = {name: one.top1 for name, one in found.items()}
        accuracy |= {f"{name}_f1": one.macro_f1 for name, one in found.items()}
        accuracy |= {f"{name}_ece": one.ece for name, one in found.items()}
        unknown = self._unknown(model)
        if unknown is not None:
            accuracy["unknown"] = float(unknown.mean())
        if final:
            accuracy["zero_shot_all"] = self._zero_shot_all()
            self._write_predictions(logits, unknown)
            if own is not None:
                self._write_personal(own, plan)
        self.busy_s += time.monotonic() - began
        per_class = {name: one.said for name, one in found.items()} if final else {}
        return Measured(accuracy, per_class, len(test))

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
            train_pictures=len(self.data.train),
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

    def _load_for(self, plan: Plan) -> None:
        if methods.get(plan.method).traits.is_averaged:
            self.load()

    def _fit(self, model: Model, plan: Plan) -> Update:
        floor = max(self.config.min_per_class, methods.min_per_class(plan))
        schedule, least = self._schedule(plan), self.config.min_votes
        return local.answer(schedule, model, self._share(floor), self.config.id, least)

    def _schedule(self, plan: Plan) -> Schedule:
        if self._scheduled is None or self._scheduled.plan != plan:
            self._scheduled = Schedule(plan, self.classes, self.dim)
        return self._scheduled

    def _share(self, min_per_class: int) -> Shared:
        """Withhold classes with fewer pictures, and log it when the withheld pictures change."""
        before = self._shared
        if before is not None and before.min_per_class == min_per_class:
            return before
        count = len(self.classes.names)
        shared = share(self.data.train, self.data.validation, count, min_per_class)
        already = np.zeros_like(shared.withheld) if before is None else before.withheld  # (C,)
        if not np.array_equal(shared.withheld, already):
            log_withheld(shared, self.classes.names)
        self._shared = shared
        return shared

    def _personal(self, model: Model, plan: Plan) -> Model | None:
        """The device's personal model; None if the plan asks for none or pictures are missing."""
        if "train" not in self.config.roles:
            return None
        return personal(plan, model, self.data, self.classes, self.config.id)

    def _write_personal(self, own: Model, plan: Plan) -> None:
        """Write personal.safetensors to the device's state_dir; it is never sent."""
        encoder_id, classes_digest = self.data.train.encoder_id, self.classes.digest
        kept = model_file.TrainedModel(
            own, f"own-{self.config.id}", plan, encoder_id, classes_digest
        )
        model_file.write(self.config.state_dir / "personal.safetensors", kept)

    def _train_alone(self, plan: Plan) -> Model:
        alone = local.alone(plan, self.classes, self.dim)
        for _ in range(exchanges(plan)):
            alone.train(self.data, self.config.id)
        return alone.model

    def _unknown(self, model: Model) -> NDArray[np.bool_] | None:
        """Find the test pictures that the model calls unknown, (N,); None without a threshold."""
        rule = rule_of(model.parameters)
        if not rule.applies:
            return None
        return methods.scores_of(model, self.data.test.vectors, self.classes) < rule.threshold

    def _zero_shot_all(self) -> float:
        """Zero-shot accuracy on the pictures of all sides; it uses no picture for training."""
        sides = (self.data.train, self.data.validation, self.data.test)
        vectors = np.concatenate([side.vectors for side in sides])  # (N, D)
        labels = np.concatenate([side.labels for side in sides])  # (N,)
        return top1(methods.predict(zeroshot.MODEL, vectors, self.classes), labels)

    def _write_predictions(
        self, logits: Mapping[str, F32], unknown: NDArray[np.bool_] | None
    ) -> None:
        """Write predictions.csv to the device's state_dir; it is never sent.

        `logits` holds float32 (N, C) by model, in the order of the test pictures. `unknown` (N,) is
        True for each one that is of none of the classes; without it there is no such column.
        """
        path = self.config.state_dir / "predictions.csv"
        names, text = self.classes.names, io.StringIO(newline="")
        rows = csv.writer(text)
        rows.writerow(["picture", "label", *logits, *(["unknown"] * (unknown is not None))])
        for i, picture in enumerate(self.data.test_pictures):
            cells = [names[int(values[i].argmax())] for values in logits.values()]
            if unknown is not None:
                cells.append("true" if unknown[i] else "false")
            rows.writerow([picture.path, names[picture.label], *cells])
        atomic.write_file(path, text.getvalue().encode(errors="surrogateescape"))
