"""Pools and tasks with generated features, for the tests of the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from in_memory import ENCODER, class_texts, features

from fedclip_edge.records import ClassTexts, Features, Plan
from fedclip_edge.simulating.host import Task, View
from fedclip_edge.simulating.pool import TEST, TRAIN, VALIDATION, Pool
from fedclip_edge.simulating.settings import Line
from fedclip_edge.simulating.splits import Device

NAMES = ("ant", "bee", "cat", "dog")
CLASSES = class_texts(NAMES)
DOMAINS = ("barn", "roof", "yard")
NONE = np.zeros(0, np.int64)


def pool(per_domain: int = 60, classes: ClassTexts = CLASSES, *, domains: bool = True) -> Pool:
    """Three domains; of each, 60 % are for training, 20 % for validation and 20 % for testing."""
    parts = [features(per_domain, seed, classes) for seed in range(len(DOMAINS))]
    fifth = per_domain // 5
    sides = np.repeat([TRAIN, VALIDATION, TEST], [per_domain - 2 * fifth, fifth, fifth])
    return Pool(
        classes=classes,
        encoder_id=ENCODER,
        vectors=np.concatenate([part.vectors for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        sides=np.tile(sides, len(DOMAINS)).astype(np.uint8),
        domains=DOMAINS if domains else (),
        domain_of=np.repeat(np.arange(len(DOMAINS)) if domains else np.zeros(3, int), per_domain),
    )


def task(
    plan: Plan,
    line: Line = "federated",
    classes: ClassTexts = CLASSES,
    min_per_class: int | None = None,
) -> Task:
    whole = View("", classes, np.arange(len(classes.names)))
    return Task("run-0", plan, line, (whole,), ENCODER, classes.vectors.shape[1], min_per_class)


def of(its: Pool, device: Device, side: str) -> Features:
    """The features of one side of a device, as an agent would hold them."""
    rows = getattr(device, side)
    return Features(its.vectors[rows], its.labels[rows], its.encoder_id)


def write_npz(path: Path, **changes: Any) -> Path:
    """Write the pool as an array file; None leaves an array out."""
    its = pool()
    training = its.sides != TEST
    groups = np.array(DOMAINS)[its.domain_of]
    arrays: dict[str, Any] = {
        "train_x": its.vectors[training],
        "train_y": its.labels[training],
        "test_x": its.vectors[~training],
        "test_y": its.labels[~training],
        "class_texts": its.classes.vectors,
        "classes": np.array(NAMES),
        "train_group": groups[training],
        "test_group": groups[~training],
        **changes,
    }
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path
