"""Lists of what a person can do for the model on this device: label, correct, and add pictures.

    label next         unlabelled pictures that are worth a label (learning/label_next.py)
    looks mislabelled  labelled pictures whose label is very unlikely to a head that was solved
                       without them (learning/held_out.py)
    classes            how well each class is predicted by such heads, from half of the pictures and
                       from most of them, and whether more would help

Laws:

- Everything is computed on the device, from cached features, and stays there.
- A label is never called wrong if no other picture has it, or if a person has confirmed it.
- Equal pictures, by hash, count once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedclip_edge.agent.model_in_use import ModelInUse
from fedclip_edge.learning.classification import classify
from fedclip_edge.learning.evaluation import probabilities
from fedclip_edge.learning.held_out import folds_of, held_out_logits
from fedclip_edge.learning.label_next import Reason, label_next
from fedclip_edge.records import BOOL, F32, ClassTexts, Features
from fedclip_edge.vision.datasets import Picture

FOLDS = 5
UNLIKELY = 0.01  # probability of a label: docs/how-to/label-next.md measures it
_GOOD = 0.9  # accuracy above which a class hardly gains
_GAIN = 0.02  # of the accuracy, from half of the pictures to most of them

Advice = Literal["too few", "more", "enough"]


@dataclass(frozen=True)
class ToLabel:
    """An unlabelled picture that is worth a label."""

    path: Path
    reason: Reason
    label: str  # the class that the model in use gives it
    probability: float
    margin: float  # between the two likeliest classes, 0 to 1


@dataclass(frozen=True)
class Doubtful:
    """A labelled picture whose label looks wrong."""

    path: Path
    label: str
    probability: float  # of its label
    likelier: str  # the class that is predicted instead
    likelier_probability: float


@dataclass(frozen=True)
class ClassNeed:
    """The state of one class on this device."""

    name: str
    pictures: int
    accuracy_half: float | None  # 0 to 1, solved from half of the pictures; None without pictures
    accuracy: float | None  # solved from four fifths
    advice: Advice


@dataclass(frozen=True)
class Review:
    """The three lists, each in the order in which a person should look at them."""

    label_next: tuple[ToLabel, ...]
    looks_mislabelled: tuple[Doubtful, ...]
    classes: tuple[ClassNeed, ...]
    unlabelled: int  # distinct pictures
    labelled: int


@dataclass(frozen=True, eq=False)
class Reviewed:
    """Distinct pictures and their raw features, float32 (N, D), in the same order."""

    pictures: tuple[Picture, ...]
    vectors: F32


def make_review(
    labelled: Reviewed,
    unlabelled: Reviewed,
    classes: ClassTexts,
    model: ModelInUse,
    *,
    most: int,
    least: int,
    confirmed: Mapping[str, str],
) -> Review:
    """Review a device's pictures; the labels are those of `classes`.

    Lists of pictures have at most `most` entries. A class with fewer than `least` pictures has too
    few. `confirmed` has labels that a person found right, by picture hash.

    Raises ConfigError for a model of an unknown method.
    """
    labels = np.array([picture.label for picture in labelled.pictures], np.int64)
    features = Features(labelled.vectors, labels, "")
    hashes = [picture.hash for picture in labelled.pictures]
    folds = folds_of(hashes, FOLDS)
    likely = probabilities(held_out_logits(features, classes, folds))  # (N, C)
    is_right = np.array(
        [confirmed.get(one.hash) == classes.names[one.label] for one in labelled.pictures], np.bool_
    )
    half = held_out_logits(features, classes, folds_of(hashes, 2))  # (N, C)
    return Review(
        _to_label(labelled, unlabelled, model, most),
        _doubtful(labelled.pictures, features, folds, likely, classes.names, is_right, most),
        _needs(labels, half, likely, classes.names, least),
        len(unlabelled.pictures),
        len(labelled.pictures),
    )


def _to_label(
    labelled: Reviewed, unlabelled: Reviewed, model: ModelInUse, most: int
) -> tuple[ToLabel, ...]:
    if not unlabelled.pictures:
        return ()
    shares = classify(unlabelled.vectors, model.classes, model.model).main  # (N, C)
    named = shares.argmax(axis=1)
    chosen = label_next(unlabelled.vectors, labelled.vectors, shares, most)
    return tuple(
        ToLabel(
            unlabelled.pictures[one.index].path,
            one.reason,
            model.classes.names[named[one.index]],
            float(shares[one.index].max()),
            one.margin,
        )
        for one in chosen
    )


def _doubtful(
    pictures: Sequence[Picture],
    features: Features,
    folds: NDArray[np.int64],
    likely: F32,
    names: Sequence[str],
    is_right: BOOL,
    most: int,
) -> tuple[Doubtful, ...]:
    """Find the pictures whose label is UNLIKELY, but not those that are right.

    `likely` is (N, C), `folds` and `is_right` are (N,).
    """
    labels = features.labels
    own = likely[np.arange(len(labels)), labels]  # (N,)
    counts = np.zeros((FOLDS, len(names)), np.int64)
    np.add.at(counts, (folds, labels), 1)
    elsewhere = counts.sum(axis=0)[labels] - counts[folds, labels]  # (N,) in the other folds
    is_other = likely.argmax(axis=1) != labels  # (N,)
    found = np.flatnonzero((own < UNLIKELY) & is_other & (elsewhere > 0) & ~is_right)
    order = found[np.argsort(own[found], kind="stable")][:most]
    return tuple(
        Doubtful(
            pictures[i].path,
            names[labels[i]],
            float(own[i]),
            names[int(likely[i].argmax())],
            float(likely[i].max()),
        )
        for i in order
    )


def _needs(
    labels: NDArray[np.int64], half: F32, likely: F32, names: Sequence[str], least: int
) -> tuple[ClassNeed, ...]:
    """The state of each class, the one that needs most pictures first; arrays are (N, C)."""
    right_half, right = half.argmax(axis=1) == labels, likely.argmax(axis=1) == labels  # (N,)
    needs = []
    for label, name in enumerate(names):
        its = labels == label
        count = int(its.sum())
        before = float(right_half[its].mean()) if count else None
        now = float(right[its].mean()) if count else None
        needs.append(ClassNeed(name, count, before, now, _advice(count, before, now, least)))
    rank = {"too few": 0, "more": 1, "enough": 2}
    return tuple(sorted(needs, key=lambda need: (rank[need.advice], need.accuracy or 0.0)))


def _advice(count: int, before: float | None, now: float | None, least: int) -> Advice:
    if before is None or now is None or count < least:
        return "too few"
    return "more" if now < _GOOD or now - before >= _GAIN else "enough"
