"""Answers of a device about its new pictures: the class of each, or that it is of none.

Laws:
- An answer is the one that `fedclip-edge predict` gives for the same picture and model
  (learning/classification.py).
- Nothing here reads a file, a socket or the clock: the caller passes features and times.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from fedclip_edge.agent.model_in_use import ModelInUse
from fedclip_edge.learning.classification import best, classify, is_unknown, threshold_of
from fedclip_edge.records import F32

DIGITS = 6  # after the point, as in the output of `predict`


@dataclass(frozen=True, eq=False)
class NewPicture:
    """A picture to answer, with its raw feature float32 (D,)."""

    path: Path
    hash: str  # of its bytes, 64 hex digits
    vector: F32  # (D,)
    event: str = ""  # name of the event that it belongs to; empty for none


@dataclass(frozen=True)
class Answer:
    """The answer for one picture."""

    time: float  # of the answer, in seconds since 1970
    device: str
    path: Path
    hash: str
    likeliest: tuple[tuple[str, float], ...]  # classes and their probabilities, the best first
    is_unknown: bool  # of none of the classes, by the model's threshold
    score: float  # low for a picture of none of the classes (learning/unknown.py)
    model: ModelInUse
    event: str = ""

    @property
    def label(self) -> str:
        """The likeliest class, also of a picture that is unknown."""
        return self.likeliest[0][0]

    @property
    def probability(self) -> float:
        return self.likeliest[0][1]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, which docs/how-to/predictions.md explains."""
        fields: dict[str, Any] = {
            "time": utc(self.time),
            "device": self.device,
            "picture": str(self.path),
            "hash": self.hash,
            "label": self.label,
            "probability": round(self.probability, DIGITS),
            "unknown": self.is_unknown,
            "score": round(self.score, DIGITS),
            "top": {label: round(share, DIGITS) for label, share in self.likeliest},
            **described(self.model),
        }
        if self.event:
            fields["event"] = self.event
        return fields


def answer(
    pictures: Sequence[NewPicture], model: ModelInUse, device: str, top: int, time: float
) -> list[Answer]:
    """Answer pictures with the model in use; `time` is in seconds since 1970.

    Raises ConfigError for a model of an unknown method.
    """
    if not pictures:
        return []
    vectors = np.stack([picture.vector for picture in pictures])  # (N, D)
    found = classify(vectors, model.classes, model.model)
    threshold, names = threshold_of(model.model), model.classes.names
    return [
        Answer(
            time=time,
            device=device,
            path=picture.path,
            hash=picture.hash,
            likeliest=tuple(best(found.main[i], names, top)),
            is_unknown=is_unknown(float(found.scores[i]), threshold),
            score=float(found.scores[i]),
            model=model,
            event=picture.event,
        )
        for i, picture in enumerate(pictures)
    ]


def described(model: ModelInUse) -> dict[str, Any]:
    """The fields of an answer that say which model gave it."""
    fields: dict[str, Any] = {"model": model.kind}
    if model.model is not None:
        fields |= {"run": model.run, "round": model.model.round, "version": model.version}
    return fields


def utc(time: float) -> str:
    """A time in seconds since 1970 as ISO 8601, in UTC with milliseconds."""
    return datetime.fromtimestamp(time, tz=timezone.utc).isoformat(timespec="milliseconds")


def line_of(fields: dict[str, Any]) -> bytes:
    """One line of JSON, in ASCII, also for a file name that is not text."""
    return json.dumps(fields).encode() + b"\n"
