"""A device's report on a model: its accuracy on the test pictures, and the cost so far."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fedclip_edge.records import COUNT_MAX, PerClass, check_domain, check_id, check_sha256

_METRIC = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True)
class Report:
    """Measurements of one model on one device, and the device's costs so far.

    It holds no picture and no feature. The constructor raises ValueError for a count, a time or a
    fraction outside its range, and for a name in `accuracy` that is a field of the report.
    """

    run: str
    round: int  # of the model evaluated: rounds closed so far
    device: str
    domain: str
    model: str  # SHA-256 of the model evaluated
    # Fractions from 0 to 1. Top-1 accuracy on the test pictures: zero_shot, federated, personal (if
    # the device has a personal model) and, only for the last model, local. With _f1 appended to
    # these names: macro F1; with _ece: expected calibration error (learning/evaluation.py).
    # zero_shot_all is the top-1 accuracy on every picture with features on the device.
    accuracy: Mapping[str, float]
    train_pictures: int
    test_pictures: int
    encoded: int  # pictures that went through the encoder since the agent started
    skipped: int  # files that could not be read as pictures
    bytes_up: int | None  # on the socket since the agent started; None if unknown
    bytes_down: int | None
    encode_s: float
    train_s: float
    wait_s: float
    # For the last model, by the names in `accuracy`: for each class, in the order of the class
    # names, the fraction of its test pictures that was predicted correctly; None if it has none.
    per_class: Mapping[str, PerClass] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_id(self.run, "run")
        check_id(self.device, "device")
        check_domain(self.domain)
        check_sha256(self.model, "model")
        counts = ("round", "train_pictures", "test_pictures", "encoded", "skipped")
        for name in (*counts, "bytes_up", "bytes_down"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= COUNT_MAX:
                raise ValueError(f"{name}: expected 0 to {COUNT_MAX}, got {value}")
        for name in ("encode_s", "train_s", "wait_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        # Accuracies are shown next to the report's own fields, so their names must differ.
        taken = {f.name for f in fields(self)}
        for name, share in self.accuracy.items():
            if not _METRIC.fullmatch(name) or name in taken:
                raise ValueError(f"accuracy: {name[:40]!r} is not allowed as a name")
            if not 0 <= share <= 1:
                raise ValueError(f"accuracy: expected 0 to 1 each, got {dict(self.accuracy)}")
        for name, by_class in self.per_class.items():
            if name not in self.accuracy:
                raise ValueError(f"per_class: {name[:40]!r} is not a name in accuracy")
            if not all(share is None or 0 <= share <= 1 for share in by_class):
                raise ValueError(f"per_class: expected 0 to 1 for each class of {name}")

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object; `Report(**report.to_json()) == report`."""
        plain = {"accuracy": dict(self.accuracy), "per_class": dict(self.per_class)}
        return {**vars(self), **plain}  # asdict would copy every value first
