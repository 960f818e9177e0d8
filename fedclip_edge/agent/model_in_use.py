"""The model that answers a device's new pictures.

    STATE_DIR/fleet.safetensors           the last model of the newest run that this device had
    STATE_DIR/fleet-classes.safetensors   the class texts that it was trained with
    STATE_DIR/personal.safetensors        the device's own model, if the run's plan makes one

With `[answers] model = "own"`, the device's own model answers if there is one. It was chosen on the
device's own validation pictures, against the fleet's model, which is inside it and answers the
pictures that are not like the device's (learning/gate.py). Otherwise the fleet's model answers, and
before the first one zero-shot CLIP.

Laws:
- A restarted device answers with the same model, before it has reached a broker.
- A model answers only features of the encoder that it was trained with. It has its own classes, so
  it stays in use with a bundle of new classes, until the first model of these arrives.
- The own model answers only while the fleet's model inside it is the one in use.
- A file that is damaged or cannot be read is reported once, and the next model in the list answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fedclip_edge import log, model_file
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.errors import BundleError, ConfigError
from fedclip_edge.learning import gate, methods
from fedclip_edge.model_file import TrainedModel
from fedclip_edge.records import ClassTexts, Model
from fedclip_edge.storage import atomic
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.class_texts import pack_classes, read_classes

FLEET, CLASSES, OWN = "fleet.safetensors", "fleet-classes.safetensors", "personal.safetensors"
Kind = Literal["zero-shot", "fleet", "own"]
_HINT = "the device goes on with the model in memory; free or repair the disk"


@dataclass(frozen=True, eq=False)
class ModelInUse:
    """A model with its class texts; without `trained` it is zero-shot CLIP."""

    kind: Kind
    classes: ClassTexts
    trained: TrainedModel | None = None
    run: str = ""  # the run of the fleet that made it
    version: str = ""  # SHA-256 of the fleet's model as it was sent

    @property
    def model(self) -> Model | None:
        """The trained model; None for zero-shot CLIP."""
        return None if self.trained is None else self.trained.model


def _log_not_used(file: Path, reason: str) -> None:
    log.event("model_file_not_used", file=file, reason=reason)


class ModelChoice:
    """The choice of the model for features of width `dim` of one encoder.

    `classes` are those of the bundle in use, for zero-shot CLIP. `wants_own` is false to use the
    fleet's model always. `report` is called with a file that cannot be used and the reason.
    """

    def __init__(
        self,
        state_dir: Path,
        encoder_id: str,
        dim: int,
        classes: ClassTexts,
        *,
        wants_own: bool,
        report: Callable[[Path, str], object] = _log_not_used,
    ) -> None:
        self._report = report
        self._state_dir = state_dir
        self._encoder_id = encoder_id
        self._dim = dim
        self._zero_shot = ModelInUse("zero-shot", classes)
        self._fleet = self._read_fleet()
        self._wants_own = wants_own
        self._own: ModelInUse | None = None
        self._own_seen: tuple[int, int] | None = None  # inode and time of the file that was read
        self.look()

    @property
    def fleet_version(self) -> str:
        """The version of the fleet's model; empty if there is none."""
        return "" if self._fleet is None else self._fleet.version

    @property
    def fleet_run(self) -> str:
        """The run that made the fleet's model; empty if there is none."""
        return "" if self._fleet is None else self._fleet.run

    @property
    def current(self) -> ModelInUse:
        """The model in use."""
        return self._own or self._fleet or self._zero_shot

    def adopt(self, trained: TrainedModel) -> None:
        """Use a new model of the fleet, with the classes of the bundle, and keep it on disk.

        A model that cannot be written is used all the same, and this is logged.
        """
        classes = self._zero_shot.classes
        self._fleet = ModelInUse("fleet", classes, trained, trained.run, trained.version)
        self._own, self._own_seen = None, None
        try:
            # First, so that a kill in between leaves a pair that does not fit, which is not used.
            atomic.write_file(self._state_dir / CLASSES, pack_classes(classes))
            model_file.write(self._state_dir / FLEET, trained)
        except OSError as error:
            reason = error.strerror or str(error)
            log.event("model_not_written", run=trained.run, reason=reason, hint=_HINT)
        self.look()

    def look(self) -> None:
        """Use the device's own model if its file is new and fits; this reads a file's times."""
        if not self._wants_own or self._fleet is None:
            return
        path = self._state_dir / OWN
        try:
            found = path.stat()
        except OSError:
            self._own, self._own_seen = None, None
            return
        seen = found.st_ino, found.st_mtime_ns
        if seen != self._own_seen:
            self._own_seen = seen
            self._own = self._read_own(path, self._fleet)

    def _read_fleet(self) -> ModelInUse | None:
        path = self._state_dir / FLEET
        try:
            if not path.exists():
                return None
            trained, classes = model_file.read(path), read_classes(self._state_dir / CLASSES)
            if trained.encoder_id != self._encoder_id or trained.classes_digest != classes.digest:
                return None
            self._check_shapes(trained, classes)
        except (ConfigError, BundleError, OSError) as error:
            self._report(path, str(error))
            return None
        return ModelInUse("fleet", classes, trained, trained.run, trained.version)

    def _read_own(self, path: Path, fleet: ModelInUse) -> ModelInUse | None:
        assert fleet.trained is not None
        try:
            own = model_file.read(path)
            is_beside = (
                own.encoder_id == self._encoder_id
                and own.classes_digest == fleet.trained.classes_digest
                and own.model.method == fleet.trained.model.method
                and _are_same(gate.shared_of(own.model), fleet.trained.model)
            )
            if not is_beside:
                return None
            self._check_shapes(own, fleet.classes)
        except ConfigError as error:
            self._report(path, str(error))
            return None
        return ModelInUse("own", fleet.classes, own, fleet.run, fleet.version)

    def _check_shapes(self, trained: TrainedModel, classes: ClassTexts) -> None:
        """Raise ConfigError unless the parameters have the shapes that their method needs."""
        if not trained.model.parameters:  # zero-shot CLIP: nothing can be wrong with it
            return
        expected = methods.shapes_beside(trained.model, trained.plan, classes, self._dim)
        if {name: term.shape for name, term in trained.model.parameters.items()} != expected:
            raise ConfigError("its parameters do not have the shapes of its method")


def model_choice(
    config: AgentConfig, bundle: Bundle, report: Callable[[Path, str], object] = _log_not_used
) -> ModelChoice:
    """Make the choice of a device with this bundle; `report` is as in ModelChoice."""
    return ModelChoice(
        config.state_dir,
        bundle.manifest.encoder_id,
        bundle.manifest.dim,
        bundle.classes,
        wants_own=config.answers.model == "own",
        report=report,
    )


def _are_same(one: Model, other: Model) -> bool:
    return one.parameters.keys() == other.parameters.keys() and all(
        np.array_equal(term, other.parameters[name]) for name, term in one.parameters.items()
    )
