"""What logits say of labelled pictures: accuracy, per class and over a fleet, and calibration.

Expected calibration error after Guo, Pleiss, Sun, Weinberger 2017, "On calibration of modern neural
networks", arXiv 1706.04599: 15 bins of equal width over the probability of the most likely class.

Law: the order of the classes changes no figure, as long as labels and logits are in one order. An
accuracy is never taken on training pictures.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedclip_edge.records import F32, I64

BINS = 15  # Guo et al., section 2
_CLASSES_SAID = 2000  # three lists of so many shares fit into a control message of 64 KiB


@dataclass(frozen=True)
class Evaluation:
    """One model on one device's test pictures; all but the count are fractions."""

    pictures: int
    top1: float
    macro_f1: float  # mean of F1 over the classes that occur among labels or answers
    ece: float
    per_class: tuple[float | None, ...]  # C shares right of a class's pictures; None where none

    @property
    def said(self) -> tuple[float | None, ...]:
        """`per_class` as a report carries it: four digits, and empty for thousands of classes."""
        if len(self.per_class) > _CLASSES_SAID:
            return ()
        return tuple(None if share is None else round(share, 4) for share in self.per_class)


@dataclass(frozen=True)
class FleetEvaluation:
    """One model over the devices that have test pictures; fractions."""

    pictures: int
    weighted: float  # top-1 over all test pictures together
    mean: float  # of the devices' top-1
    worst: float  # the lowest of the devices' top-1
    macro_f1: float  # mean over the devices
    ece: float  # mean over the devices


def evaluate(logits: F32, labels: I64) -> Evaluation:
    """Of logits (N, C), in one order of classes with labels (N,).

    Raises ValueError without pictures, and for labels that are none of the classes.
    """
    classes = logits.shape[1]
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()} for {classes} classes")
    answers = logits.argmax(axis=1)  # (N,)
    right = answers == labels
    shares = top1(logits, labels)
    of_class = np.bincount(labels, minlength=classes)  # (C,)
    answered = np.bincount(answers, minlength=classes)
    hits = np.bincount(labels[right], minlength=classes)
    occurs = of_class + answered > 0
    return Evaluation(
        pictures=len(labels),
        top1=shares,
        # Sorted, so that not even the rounding of the sum depends on the order of the classes.
        macro_f1=float(np.mean(np.sort(2 * hits[occurs] / (of_class + answered)[occurs]))),
        ece=_calibration_error(probabilities(logits).max(axis=1), right),
        per_class=tuple(
            float(hit / count) if count else None for hit, count in zip(hits, of_class, strict=True)
        ),
    )


def over_fleet(evaluations: Sequence[Evaluation]) -> FleetEvaluation:
    """Of one or more devices, each on its own test pictures."""
    pictures = sum(one.pictures for one in evaluations)
    shares = [one.top1 for one in evaluations]
    return FleetEvaluation(
        pictures=pictures,
        weighted=sum(one.top1 * one.pictures for one in evaluations) / pictures,
        mean=statistics.fmean(shares),
        worst=min(shares),
        macro_f1=statistics.fmean(one.macro_f1 for one in evaluations),
        ece=statistics.fmean(one.ece for one in evaluations),
    )


def harmonic_mean(base: float, new: float) -> float:
    """Of the accuracies on classes that were trained on and on new ones; 0 where one is 0."""
    return statistics.harmonic_mean([base, new])


def probabilities(logits: F32) -> F32:
    """Softmax over the classes: f32 (N, C), rows sum to 1."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)


def top1(logits: F32, labels: I64) -> float:
    """The share of pictures whose largest logit is their label's; logits (N, C), labels (N,).

    Raises ValueError without pictures: an accuracy of nothing is no number.
    """
    if not len(labels):
        raise ValueError("no test pictures to evaluate on")
    return float(np.mean(logits.argmax(axis=1) == labels))


def goodness(logits: F32, labels: I64) -> tuple[float, float]:
    """What a choice among models goes by: top-1, and among equals how likely the labels are.

    Of logits (N, C), labels (N,); compares as tuples do, and larger is better.
    """
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    likely = scores[np.arange(len(labels)), labels] - np.log(np.exp(scores).sum(axis=1))
    return top1(logits, labels), round(float(likely.mean()), 6)  # less is rounding, not a reason


def _calibration_error(confidence: F32, right: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
    """How far confidence (N,) and accuracy are apart, in the mean over the pictures' bins."""
    # Bin b holds ((b - 1) / BINS, b / BINS].
    bins = np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, right - confidence.astype(np.float64), BINS)  # (BINS,), times counts
    return float(min(1.0, np.abs(gaps).sum() / len(right)))
