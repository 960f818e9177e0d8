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

from fedclip_edge import log
from fedclip_edge.records import I64, Features


@dataclass(frozen=True, eq=False)
class Shared:
    """The features that updates may depend on, and the numbers of withheld pictures.

    Features are raw, float32 (N, D), with labels int64 (N,).
    """

    train: Features
    validation: Features
    min_per_class: int
    withheld: I64  # (C,) pictures of each class that are on neither side


def share(train: Features, validation: Features, classes: int, min_per_class: int) -> Shared:
    """Withhold classes with fewer than `min_per_class` pictures; `classes` is their number C.

    The features are raw, float32 (N, D), with labels int64 (N,) below C.
    """
    trained = np.bincount(train.labels, minlength=classes)  # (C,)
    validated = np.bincount(validation.labels, minlength=classes)  # (C,)
    trains, validates = trained >= min_per_class, validated >= min_per_class  # (C,) each
    together = ~trains & ~validates & (trained + validated >= min_per_class)  # (C,)
    moved = _only(validation, together[validation.labels])
    return Shared(
        train=_joined(_only(train, (trains | together)[train.labels]), moved),
        validation=_only(validation, validates[validation.labels]),
        min_per_class=min_per_class,
        withheld=np.where(trains | together, 0, trained)
        + np.where(validates | together, 0, validated),
    )


def log_withheld(shared: Shared, names: Sequence[str]) -> None:
    """Log the names of the classes with withheld pictures and the numbers of these pictures."""
    counts = zip(names, shared.withheld, strict=True)
    classes = [f"{name} {count}" for name, count in counts if count]
    log.event(
        "pictures_withheld",
        pictures=int(shared.withheld.sum()),
        min_per_class=shared.min_per_class,
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
