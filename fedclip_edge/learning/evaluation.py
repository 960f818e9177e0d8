"""Metrics of logits on labelled pictures: accuracy, macro F1 and calibration error.

Expected calibration error follows Guo, Pleiss, Sun, Weinberger 2017, "On calibration of modern
neural networks", arXiv 1706.04599: 15 bins of equal width over the probability of the most likely
class.

Laws:

- The order of the classes changes no metric, as long as labels and logits have the same order.
- Accuracy is never measured on training pictures.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedclip_edge.records import F32, I64

BINS = 15  # Guo et al., section 2
_CLASSES_REPORTED = 2000  # three lists of this length fit into a control message of 64 KiB


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on one device's test pictures, as fractions from 0 to 1."""

    pictures: int  # number of test pictures
    top1: float
    macro_f1: float  # mean F1 over the classes that occur among labels or predictions
    ece: float
    per_class: tuple[float | None, ...]  # accuracy of each of C classes; None without pictures

    @property
    def said(self) -> tuple[float | None, ...]:
        """`per_class` for a report: rounded to 4 digits; empty for more than 2000 classes."""
        if len(self.per_class) > _CLASSES_REPORTED:
            return ()
        return tuple(None if share is None else round(share, 4) for share in self.per_class)


@dataclass(frozen=True)
class FleetEvaluation:
    """Metrics of one model over the devices that have test pictures, as fractions from 0 to 1."""

    pictures: int  # number of test pictures
    weighted: float  # top-1 over all test pictures together
    mean: float  # mean of the devices' top-1
    worst: float  # lowest of the devices' top-1
    macro_f1: float  # mean over the devices
    ece: float  # mean over the devices


def evaluate(logits: F32, labels: I64) -> Evaluation:
    """Evaluate logits float32 (N, C) against labels int64 (N,).

    Column c of the logits belongs to label c. Raises ValueError if there are no pictures (N is 0),
    and for labels outside 0 to C - 1.
    """
    classes = logits.shape[1]
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"labels: expected 0 to {classes - 1}, got {labels.min()} to {labels.max()}"
        )
    answers = logits.argmax(axis=1)  # (N,)
    right = answers == labels
    shares = top1(logits, labels)
    of_class = np.bincount(labels, minlength=classes)  # (C,)
    answered = np.bincount(answers, minlength=classes)  # (C,)
    hits = np.bincount(labels[right], minlength=classes)  # (C,)
    occurs = of_class + answered > 0
    return Evaluation(
        pictures=len(labels),
        top1=shares,
        # Sorted, so that the rounding of the sum does not depend on the order of the classes.
        macro_f1=float(np.mean(np.sort(2 * hits[occurs] / (of_class + answered)[occurs]))),
        ece=_calibration_error(probabilities(logits).max(axis=1), right),
        per_class=tuple(
            float(hit / count) if count else None for hit, count in zip(hits, of_class, strict=True)
        ),
    )


def over_fleet(evaluations: Sequence[Evaluation]) -> FleetEvaluation:
    """Combine the evaluations of one or more devices, each on its own test pictures."""
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
    """Harmonic mean of the accuracies on trained (base) and on new classes; 0 if one is 0."""
    return statistics.harmonic_mean([base, new])


def probabilities(logits: F32) -> F32:
    """Apply softmax over the classes: float32 (N, C) to float32 (N, C), rows sum to 1."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)


def top1(logits: F32, labels: I64) -> float:
    """Accuracy of logits float32 (N, C) against labels int64 (N,), from 0 to 1.

    Raises ValueError without pictures.
    """
    if not len(labels):
        raise ValueError("there are no test pictures to evaluate on")
    return float(np.mean(logits.argmax(axis=1) == labels))


def goodness(logits: F32, labels: I64) -> tuple[float, float]:
    """Score to choose among models: top-1 accuracy, then the mean log-likelihood of the labels.

    Takes logits float32 (N, C) and labels int64 (N,). Compare the pairs as tuples; larger is
    better. Raises ValueError without pictures.
    """
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    likely = scores[np.arange(len(labels)), labels] - np.log(np.exp(scores).sum(axis=1))
    # Differences below the sixth digit are rounding errors.
    return top1(logits, labels), round(float(likely.mean()), 6)


def _calibration_error(confidence: F32, right: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
    """Expected calibration error of confidence float32 (N,) and correctness bool (N,)."""
    # Bin b holds ((b - 1) / BINS, b / BINS].
    bins = np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    # Accuracy minus confidence of each bin, times the number of its pictures.
    gaps = np.bincount(bins, right - confidence.astype(np.float64), BINS)  # (BINS,)
    return float(min(1.0, np.abs(gaps).sum() / len(right)))
