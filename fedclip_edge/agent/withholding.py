"""Withholding of the classes that have few pictures on a device.

A sum over one picture is that picture's feature, and what a model learns about a class with one
picture depends on that picture alone. So no update depends on a class with few pictures. Personal
models may depend on them, because they stay on the device.

Laws, for a floor of `min_per_class` pictures:

- A class has either no picture on a side, or at least as many as the floor.
- A side below the floor is withheld. If both sides are below it and reach it together, all their
  pictures are for training.
- Every other picture keeps its side, and the pictures of a side keep their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedclip_edge import log
from fedclip_edge.records import I64, Features


@dataclass(frozen=True, eq=False)
class Numbers:
    """Numbers of pictures of each class, (C,): those that updates may depend on, and the others."""

    train: I64
    validation: I64
    withheld: I64  # on neither side
    together: NDArray[np.bool_]  # classes whose validation pictures are for training too
    min_per_class: int


@dataclass(frozen=True, eq=False)
class Shared:
    """The features that updates may depend on: raw, float32 (N, D), with labels int64 (N,)."""

    train: Features
    validation: Features
    numbers: Numbers


def count_shared(train: I64, validation: I64, classes: int, min_per_class: int) -> Numbers:
    """Count what `share` would share of pictures with these labels, int64 (N,) below `classes`."""
    trained = np.bincount(train, minlength=classes)  # (C,)
    validated = np.bincount(validation, minlength=classes)  # (C,)
    trains, validates = trained >= min_per_class, validated >= min_per_class  # (C,) each
    together = ~trains & ~validates & (trained + validated >= min_per_class)  # (C,)
    shared = np.where(trains, trained, 0) + np.where(together, trained + validated, 0)
    kept = np.where(validates, validated, 0)
    return Numbers(shared, kept, trained + validated - shared - kept, together, min_per_class)


def share(train: Features, validation: Features, classes: int, min_per_class: int) -> Shared:
    """Withhold classes with fewer than `min_per_class` pictures; `classes` is their number C.

    The features are raw, float32 (N, D), with labels int64 (N,) below C.
    """
    numbers = count_shared(train.labels, validation.labels, classes, min_per_class)
    moved = _only(validation, numbers.together[validation.labels])
    return Shared(
        train=_joined(_only(train, (numbers.train > 0)[train.labels]), moved),
        validation=_only(validation, (numbers.validation > 0)[validation.labels]),
        numbers=numbers,
    )


def log_withheld(numbers: Numbers, names: Sequence[str]) -> None:
    """Log the names of the classes with withheld pictures and the numbers of these pictures."""
    counts = zip(names, numbers.withheld, strict=True)
    classes = [f"{name} {count}" for name, count in counts if count]
    log.event(
        "pictures_withheld",
        pictures=int(numbers.withheld.sum()),
        min_per_class=numbers.min_per_class,
        classes=", ".join(classes) or None,
    )


def _only(features: Features, rows: np.ndarray) -> Features:
    """Keep the rows where `rows`, bool (N,), is true."""
    if rows.all():
        return features  # a copy would take as much memory again
    return Features(features.vectors[rows], features.labels[rows], features.encoder_id)


def _joined(features: Features, more: Features) -> Features:
    if not len(more):
        return features
    return Features(
        np.concatenate([features.vectors, more.vectors]),
        np.concatenate([features.labels, more.labels]),
        features.encoder_id,
    )
