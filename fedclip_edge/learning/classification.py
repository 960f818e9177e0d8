"""Classes of pictures from their features: probabilities, the likeliest classes, and unknown ones.

Commands and agents answer through this module, so both give the same answer for the same picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedclip_edge.learning import methods
from fedclip_edge.learning.evaluation import probabilities
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.learning.unknown import rule_of
from fedclip_edge.records import F32, ClassTexts, Model


@dataclass(frozen=True, eq=False)
class Classified:
    """Probabilities and scores of N pictures."""

    zero_shot: F32  # (N, C) probabilities
    adapted: F32 | None  # (N, C) probabilities from the model; None without a model
    scores: F32  # (N,) from the model, or from zero-shot CLIP without a model

    @property
    def main(self) -> F32:
        """Probabilities (N, C) of the model, or of zero-shot CLIP without a model."""
        return self.zero_shot if self.adapted is None else self.adapted


def classify(vectors: F32, classes: ClassTexts, model: Model | None) -> Classified:
    """Classify raw features float32 (N, D) with zero-shot CLIP, and with `model` if there is one.

    Raises ConfigError for a model of an unknown method.
    """
    zero_shot = methods.predict(zeroshot.MODEL, vectors, classes)  # (N, C)
    scores = methods.scores_of(zeroshot.MODEL if model is None else model, vectors, classes)
    adapted = None if model is None else probabilities(methods.predict(model, vectors, classes))
    return Classified(probabilities(zero_shot), adapted, scores)


def best(values: F32, names: Sequence[str], top: int) -> list[tuple[str, float]]:
    """Return the `top` likeliest classes and their values in the probabilities `values` (C,)."""
    order = (-values).argsort(kind="stable")[:top]
    return [(names[i], float(values[i])) for i in order]


def threshold_of(model: Model | None) -> float | None:
    """Return the score below which the model calls a picture unknown; None if it never does."""
    rule = rule_of({} if model is None else model.parameters)
    return rule.threshold if rule.applies else None


def is_unknown(score: float, threshold: float | None) -> bool:
    """Return whether a picture with this score is of none of the classes."""
    return threshold is not None and score < threshold
