"""Training and evaluation on a device's own features: the work of its trainer process.

The process is `trainer_process.py`. The same work can be done in the caller's process. Two results
stay on the device, in its state_dir: predictions.csv and personal.safetensors.
"""

from __future__ import annotations

import csv
import functools
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedclip_edge import log, model_file
from fedclip_edge.agent.features import DeviceFeatures, Sides, read_features
from fedclip_edge.agent.model_in_use import OWN
from fedclip_edge.agent.withholding import Shared, share
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.learning import local, methods
from fedclip_edge.learning.evaluation import evaluate, top1
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.learning.personal import personal
from fedclip_edge.learning.run_steps import exchanges
from fedclip_edge.learning.schedule import Schedules
from fedclip_edge.learning.unknown import rule_of
from fedclip_edge.records import F32, ClassTexts, Measured, Model, Plan, Update
from fedclip_edge.storage import atomic
from fedclip_edge.vision.bundle import Bundle


@functools.cache
def load_torch() -> None:
    """Load torch for training by gradients, and limit it to one thread."""
    began = time.monotonic()
    from fedclip_edge.learning import training

    training.use_one_thread()
    log.event("torch_loaded", seconds=round(time.monotonic() - began, 2))


@dataclass(eq=False)
class Training:
    """The features of one device, and the work on them."""

    config: AgentConfig
    classes: ClassTexts
    dim: int  # feature width D
    data: DeviceFeatures
    load: Callable[[], None] = load_torch  # called before training by gradients
    _shared: Shared | None = None  # for the floor of the last plan
    _schedules: Schedules = field(init=False)

    def __post_init__(self) -> None:
        self._schedules = Schedules(self.classes, self.dim)

    def fit(self, model: Model, plan: Plan, floor: int) -> tuple[Update, float]:
        """Answer the exchange after `model`, as `Learner.fit`.

        The update depends on no class with fewer than `floor` pictures. Also returns the seconds
        that it took, without loading torch.
        """
        self._load_for(plan)
        began = time.monotonic()
        schedule, least = self._schedules.of(plan), self.config.min_votes
        made = local.answer(schedule, model, self._share(floor), self.config.id, least)
        return made, time.monotonic() - began

    def evaluate(self, model: Model, plan: Plan, final: bool) -> Measured:
        """Evaluate the model, zero-shot and any personal model on the test pictures.

        Accuracies, F1 and ECE are fractions, and so is the share of the pictures that a model with
        a threshold calls unknown. With `final` the result also has the accuracy for each class, the
        zero-shot accuracy on all pictures and, if the plan asks for it, the accuracy of a model
        trained on this device alone. `final` also writes predictions.csv and, if there is a
        personal model, personal.safetensors.

        Raises ConfigError for an unknown method or option, OSError if a file cannot be written.
        """
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
        per_class = {name: one.said for name, one in found.items()} if final else {}
        return Measured(accuracy, per_class, len(test))

    def _load_for(self, plan: Plan) -> None:
        if methods.get(plan.method).traits.is_averaged:
            self.load()

    def _share(self, floor: int) -> Shared:
        if self._shared is None or self._shared.numbers.min_per_class != floor:
            count = len(self.classes.names)
            self._shared = share(self.data.train, self.data.validation, count, floor)
        return self._shared

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
        model_file.write(self.config.state_dir / OWN, kept)

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


class CachedTraining(Training):
    """The same work, on features that it reads from the device's cache."""

    def __init__(self, config: AgentConfig, bundle: Bundle, sides: Sides) -> None:
        """Read the features of these pictures; raises the errors of `read_features`."""
        features = read_features(config, bundle, sides)
        super().__init__(config, bundle.classes, bundle.manifest.dim, features)
        self._bundle = bundle

    def use(self, sides: Sides) -> None:
        """Work with the features of other pictures; raises the errors of `read_features`."""
        self.data, self._shared = read_features(self.config, self._bundle, sides), None
