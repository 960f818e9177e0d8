"""A device's report on a model: its accuracy on the test pictures, and the cost so far."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fedclip_edge.errors import PeerError
from fedclip_edge.records import COUNT_MAX, PerClass, check_domain, check_id, check_sha256

PICTURES_MAX = 10**9  # on one device; encoding so many would take years
_METRIC = re.compile(r"[a-z][a-z0-9_]{0,31}")
# Fractions of the test pictures.
_OF_TEST = ("zero_shot", "federated", "personal", "local", "unknown")
_ROUNDED = 1e-4  # `per_class` has four digits


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
    # zero_shot_all is the top-1 accuracy on every picture with features on the device. unknown is
    # the share of the test pictures that the shared model, if it has a threshold, calls unknown.
    accuracy: Mapping[str, float]
    train_pictures: int
    test_pictures: int
    encoded: int  # pictures that went through the encoder since the agent started
    skipped: int  # files and folders that could not be read
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


def check_possible(report: Report) -> None:
    """Raise PeerError, with the reason, if no device can measure what the report says.

    Each check holds for every device: its accuracies are fractions of its test pictures, and its
    accuracy lies between those of its best and its worst class. A false accuracy that is such a
    fraction cannot be told from a true one.
    """
    for name in ("train_pictures", "test_pictures"):
        if getattr(report, name) > PICTURES_MAX:
            raise PeerError(f"report: {name} is {getattr(report, name)}, limit {PICTURES_MAX}")
    for name in _OF_TEST:
        if name in report.accuracy:
            _check_fraction(name, report.accuracy[name], report.test_pictures)
    tested = {tuple(share is None for share in of) for of in report.per_class.values() if of}
    if len(tested) > 1:
        raise PeerError("report: per_class has other classes with test pictures for each model")
    for name, by_class in report.per_class.items():
        shares = [share for share in by_class if share is not None]
        if len(shares) > report.test_pictures:
            raise PeerError(
                f"report: per_class has {len(shares)} classes with test pictures, but there are "
                f"{report.test_pictures} test pictures"
            )
        if shares and not min(shares) - _ROUNDED <= report.accuracy[name] <= max(shares) + _ROUNDED:
            raise PeerError(
                f"report: the accuracy {name} is {report.accuracy[name]:.6g}, but its classes have "
                f"accuracies from {min(shares):g} to {max(shares):g}"
            )


def _check_fraction(name: str, share: float, pictures: int) -> None:
    """Check that `share` is a number of pictures divided by `pictures`."""
    count = share * pictures
    # For PICTURES_MAX the product is off by 1e-7 at most.
    if not pictures or abs(count - round(count)) > 1e-6:
        raise PeerError(
            f"report: the figure {name} is {share:.6g}, which is no fraction of "
            f"{pictures} test pictures"
        )
