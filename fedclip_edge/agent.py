"""One device: its pictures become features once, then it trains and evaluates as rounds ask.

What leaves the device is what `session.py` says: control messages, contributions, accuracies.
Pictures, features and predictions stay.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import io
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedclip_edge import atomic, log, model_file
from fedclip_edge.config import AgentConfig
from fedclip_edge.errors import ConfigError, DataError
from fedclip_edge.learning import local, methods
from fedclip_edge.learning.evaluation import evaluate, top1
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.messaging import identity, mqtt, transport
from fedclip_edge.messaging.expiry import Expiry
from fedclip_edge.messaging.topics import Topics
from fedclip_edge.parked import open_parked
from fedclip_edge.processes import claim
from fedclip_edge.records import (
    F32,
    ClassTexts,
    Features,
    Measured,
    Model,
    Plan,
    Report,
    Shapes,
    Terms,
    Update,
)
from fedclip_edge.session import Session, will
from fedclip_edge.vision.bundle import Bundle, read_bundle
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.cautions import cautions
from fedclip_edge.vision.datasets import Picture, read_folder, split
from fedclip_edge.vision.embedding import Embedded, Progress, embed_pictures
from fedclip_edge.vision.standby import StandbyEncoder

_FIRST_CONNECTION_S = 10.0  # later ones are tried for ever
_TICK_S = 0.2
_EVENTS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Prepared:
    """A device's features, split, and what it took to get them."""

    train: Features
    validation: Features
    test: Features
    test_pictures: tuple[Picture, ...]
    encoded: int
    skipped: int
    encode_s: float


def _nothing() -> None:
    """All is there."""


@dataclass(eq=False)
class LocalLearner:
    """The learner of `session.py` over one device's features."""

    config: AgentConfig
    classes: ClassTexts
    dim: int
    data: Prepared
    traffic: Callable[[], transport.Traffic | None]
    load: Callable[[], None] = _nothing  # what has to be there before the first training
    train_s: float = 0.0
    busy_s: float = 0.0

    def shapes(self, plan: Plan) -> Shapes:
        return methods.shapes(plan, self.classes, self.dim)

    def fit(self, model: Model, plan: Plan, state: Terms) -> tuple[Update, Terms]:
        began = time.monotonic()
        self.load()
        loaded = time.monotonic()
        made = self._fit(model, plan, state)
        ended = time.monotonic()
        self.train_s += ended - loaded
        self.busy_s += ended - began
        return made

    def evaluate(self, model: Model, plan: Plan, *, final: bool) -> Measured:
        began = time.monotonic()
        self.load()
        test = self.data.test
        logits = {
            "zero_shot": methods.predict(zeroshot.MODEL, test.vectors, self.classes),
            "federated": methods.predict(model, test.vectors, self.classes),
        }
        if final and plan.local_baseline and "train" in self.config.roles:
            alone = self._train_alone(plan)
            logits["local"] = methods.predict(alone, test.vectors, self.classes)
        own = self._personal(model, plan)
        if own is not None:
            logits["personal"] = methods.predict(own, test.vectors, self.classes)
        found = {name: evaluate(values, test.labels) for name, values in logits.items()}
        accuracy = {name: one.top1 for name, one in found.items()}
        accuracy |= {f"{name}_f1": one.macro_f1 for name, one in found.items()}
        accuracy |= {f"{name}_ece": one.ece for name, one in found.items()}
        if final:
            accuracy["zero_shot_all"] = self._zero_shot_all()
            self._write_predictions(logits)
            if own is not None:
                self._write_personal(own, plan)
        self.busy_s += time.monotonic() - began
        return Measured(accuracy, {name: one.said for name, one in found.items()} if final else {})

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
            test_pictures=len(self.data.test),
            encoded=self.data.encoded,
            skipped=self.data.skipped,
            bytes_up=None if traffic is None else traffic.up_bytes,
            bytes_down=None if traffic is None else traffic.down_bytes,
            encode_s=self.data.encode_s,
            train_s=self.train_s,
            wait_s=wait_s,
            per_class=measured.per_class,
        )

    def _fit(self, model: Model, plan: Plan, state: Terms) -> tuple[Update, Terms]:
        return local.fit(plan, model, self.data, self.classes, state, self.config.id)

    def _personal(self, model: Model, plan: Plan) -> Model | None:
        """The device's own model, where the method has one and there is what to make it of."""
        if "train" not in self.config.roles:
            return None
        return local.personal(plan, model, self.data, self.classes)

    def _write_personal(self, own: Model, plan: Plan) -> None:
        """personal.safetensors in the device's own folder; it is never sent."""
        encoder_id, classes_digest = self.data.train.encoder_id, self.classes.digest
        kept = model_file.TrainedModel(
            own, f"own-{self.config.id}", plan, encoder_id, classes_digest
        )
        model_file.write(self.config.state_dir / "personal.safetensors", kept)

    def _train_alone(self, plan: Plan) -> Model:
        alone = local.alone(plan, self.classes, self.dim)
        for _ in range(plan.rounds):
            alone.train(self.data, self.classes, self.config.id)
        return alone.model

    def _zero_shot_all(self) -> float:
        """Over all that has features here: nothing is trained, so none is a training picture."""
        sides = (self.data.train, self.data.validation, self.data.test)
        vectors = np.concatenate([side.vectors for side in sides])
        labels = np.concatenate([side.labels for side in sides])
        return top1(methods.predict(zeroshot.MODEL, vectors, self.classes), labels)

    def _write_predictions(self, logits: Mapping[str, F32]) -> None:
        """predictions.csv in the device's own folder; it is never sent."""
        path = self.config.state_dir / "predictions.csv"
        names, text = self.classes.names, io.StringIO(newline="")
        rows = csv.writer(text)
        rows.writerow(["picture", "label", *logits])
        for i, picture in enumerate(self.data.test_pictures):
            guesses = [names[int(values[i].argmax())] for values in logits.values()]
            rows.writerow([picture.path, names[picture.label], *guesses])
        atomic.write_file(path, text.getvalue().encode(errors="surrogateescape"))


def prepare(config: AgentConfig, bundle: Bundle, progress: Progress | None) -> Prepared:
    """The device's features, from its cache where it has them.

    Raises DataError where there is nothing to train or to evaluate on.
    """
    dataset = read_folder(config.data.folder, bundle.classes.names)
    sides = split(dataset, config.data)
    wanted = {
        "train": sides.train if "train" in config.roles else (),
        "validation": sides.validation,
        "test": sides.test if "evaluate" in config.roles else (),
    }
    encoder = StandbyEncoder(bundle, config.encoder)  # let go with this function: it is not small
    began = time.monotonic()
    with FeatureCache(config.state_dir / "features.sqlite") as cache:
        embedded = {
            side: embed_pictures(
                pictures,
                encoder,
                cache,
                bundle.manifest.preprocessing,
                batch_size=config.encoder.batch_size,
                progress=progress,
            )
            for side, pictures in wanted.items()
        }
    encode_s = time.monotonic() - began
    if dataset.ignored:
        kinds = sorted({path.suffix.lower() for path in dataset.ignored})
        log.event("files_ignored", count=len(dataset.ignored), kinds=" ".join(kinds))
    skipped = [*dataset.skipped, *(s for side in embedded.values() for s in side.skipped)]
    for picture in skipped:
        log.event("picture_skipped", picture=picture.path, reason=picture.reason)
    for name in sides.classes_without_test:
        log.event("class_without_test_pictures", class_name=name)
    for side, role in (("train", "train"), ("test", "evaluate")):
        if role in config.roles and not embedded[side].pictures:
            raise DataError(
                f"{config.data.folder} has no {side} pictures that can be read, but {config.id} "
                f"has the role {role!r}; add pictures, or change the shares under [data]"
            )
    encoded = sum(side.encoded for side in embedded.values())
    log.event(
        "features_ready",
        train=len(embedded["train"].pictures),
        test=len(embedded["test"].pictures),
        encoded=encoded,
        cached=sum(side.cached for side in embedded.values()),
        skipped=len(skipped),
        seconds=encode_s,
        provider=config.encoder.provider,
    )
    return Prepared(
        train=_features(embedded["train"], bundle),
        validation=_features(embedded["validation"], bundle),
        test=_features(embedded["test"], bundle),
        test_pictures=embedded["test"].pictures,
        encoded=encoded,
        skipped=len(skipped),
        encode_s=encode_s,
    )


def run(config: AgentConfig, *, once: bool, progress: Progress | None = None) -> None:
    """The device's loop; with `once` it ends after one run.

    Raises LinkError where no broker answers at first; once it has, the link may come and go. Torch
    is loaded when the first round asks for it: a box that waits needs a third of the memory.
    """
    _check_torch()
    bundle = read_bundle(config.bundle)
    for caution in cautions(bundle.manifest):
        log.event("bundle_caution", bundle=config.bundle, caution=caution)
    _make_state_dir(config.state_dir)
    lock = claim(config.state_dir / "lock", f"state_dir {config.state_dir}")
    parked = open_parked(config.state_dir / "parked.sqlite")
    data = prepare(config, bundle, progress)
    me = identity.of(config.broker.key, config.state_dir / "device.key")
    boot = secrets.token_hex(8)
    link = mqtt.PahoTransport(
        config.broker,
        transport.device_client(config.fleet, config.id, boot),
        Topics(config.fleet).for_device(config.id),
        will(config, me, boot),
    )
    session = Session(
        config=config,
        boot=boot,
        encoder_id=bundle.manifest.encoder_id,
        classes_digest=bundle.classes.digest,
        learner=LocalLearner(
            config, bundle.classes, bundle.manifest.dim, data, link.traffic, _load_torch
        ),
        identity=me,
        transport=link,
        parked=parked,
    )
    link.connect(_FIRST_CONNECTION_S)
    log.event("connected", broker=f"{config.broker.host}:{config.broker.port}", id=config.id)
    try:
        renew = f"`fedclip-edge renew {config.id}` writes a new one; put it there and restart"
        loop(session, once=once, expiry=Expiry(config.broker.certificate, renew))
    finally:
        session.say_goodbye()
        link.close()
        parked.close()
        lock.close()


def _check_torch() -> None:
    """What a box without torch should hear at its start, and not when a round begins."""
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")


@functools.cache
def _load_torch() -> None:
    began = time.monotonic()
    from fedclip_edge.learning import training

    training.use_one_thread()
    log.event("torch_loaded", seconds=round(time.monotonic() - began, 2))


def _features(embedded: Embedded, bundle: Bundle) -> Features:
    return Features(embedded.vectors, embedded.labels, bundle.manifest.encoder_id)


def _make_state_dir(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"state_dir {folder} cannot be made: {error.strerror}; name a folder that can be "
            "written under 'state_dir'"
        ) from error


def loop(session: Session, *, once: bool, expiry: Expiry | None = None) -> None:
    """Takes the events that are there before each piece of work: news may make work needless.

    But no more than some: where messages never end, work goes on all the same.
    """
    worked = False
    while True:
        event = session.transport.next_event(0 if worked else _TICK_S)
        taken = 0
        while event is not None:
            session.take(event, time.monotonic())
            taken += 1
            event = session.transport.next_event(0) if taken < _EVENTS_AT_ONCE else None
        worked = session.act(time.monotonic())
        if expiry is not None:
            expiry.look(time.monotonic())
        if session.finished:
            log.event("run_done", refused_messages=session.refused_messages)
            if once:
                return
            session.finished = False
