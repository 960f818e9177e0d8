"""Pictures with features, models and answers for the tests of a device's answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedclip_edge.agent.answers import Answer, NewPicture, answer
from fedclip_edge.agent.model_in_use import ModelInUse
from fedclip_edge.learning import methods
from fedclip_edge.learning.personal import personal
from fedclip_edge.learning.unknown import Rule, with_rule
from fedclip_edge.model_file import TrainedModel
from fedclip_edge.records import ClassTexts, Features, Model, Plan

D, ENCODER = 16, "e" * 64
PLAN = methods.with_defaults(Plan("linear", rounds=1, vote="off", personal_epochs=2))


def class_texts(*names: str) -> ClassTexts:
    rng = np.random.default_rng(len(names))
    vectors = rng.normal(size=(len(names), D)).astype(np.float32)
    return ClassTexts(
        names, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 100.0, "a {}"
    )


CLASSES = class_texts("circle", "square", "triangle")


def fleet_model(
    value: float, run: str = "run-1", classes: ClassTexts = CLASSES, rule: Rule | None = None
) -> TrainedModel:
    """A model of a fleet; each `value` gives another one."""
    model = replace(methods.initial(PLAN, classes, D), round=1)
    terms = {name: term + np.float32(value) for name, term in model.parameters.items()}
    rng = np.random.default_rng(int(100 * value))
    terms = {n: (t + rng.normal(size=t.shape)).astype(np.float32) for n, t in terms.items()}
    terms = terms if rule is None else with_rule(terms, rule)
    version = f"{abs(hash((value, run))):064x}"
    return TrainedModel(Model(PLAN.method, 1, terms), run, PLAN, ENCODER, classes.digest, version)


class Sides:
    """Pictures of one class in an unusual place, which a personal model learns."""

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        labels = np.arange(60) % 3
        vectors = (CLASSES.vectors[(labels + 1) % 3] + rng.normal(0, 0.05, (60, D))).astype(
            np.float32
        )
        self.train = Features(vectors[:30], labels[:30], ENCODER)
        self.validation = Features(vectors[30:], labels[30:], ENCODER)


def own_model(fleet: TrainedModel) -> TrainedModel:
    """The device's own model beside this one of the fleet."""
    own = personal(PLAN, fleet.model, Sides(), CLASSES, "cam-07")
    assert own is not None
    return TrainedModel(own, "own-cam-07", PLAN, ENCODER, fleet.classes_digest)


def pictures(count: int, seed: int = 0, event: str = "") -> list[NewPicture]:
    rng = np.random.default_rng(seed)
    return [
        NewPicture(
            Path(f"/inbox/{seed}-{i}.jpg"),
            f"{seed * 1000 + i:064x}",
            rng.normal(size=D).astype(np.float32),
            event,
        )
        for i in range(count)
    ]


def made(
    label: str, probability: float = 0.9, *, event: str = "door", is_unknown: bool = False
) -> Answer:
    """An answer with this label."""
    rest = [name for name in CLASSES.names if name != label]
    likeliest = ((label, probability), (rest[0], 1 - probability))
    model = ModelInUse("zero-shot", CLASSES)
    path = Path("/inbox/a.jpg")
    return Answer(0.0, "cam-07", path, "0" * 64, likeliest, is_unknown, 0.2, model, event)


def zero_shot_answers(count: int, seed: int = 0) -> list[Answer]:
    return answer(pictures(count, seed), ModelInUse("zero-shot", CLASSES), "cam-07", 3, 0.0)
