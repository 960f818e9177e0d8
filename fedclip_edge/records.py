"""Records that the packages exchange: features, class texts, plans, models and updates.

Axes, here and everywhere: N pictures, D feature width, C classes, S image side in pixels.

Law: a record is always well formed. Its constructor raises ValueError, with the expected and the
given value; code that reads bytes from outside raises its own error instead.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
BOOL = NDArray[np.bool_]
Scalar = str | int | float | bool
Arrays = Mapping[str, F32]
Sums = Mapping[str, I64]
Shapes = Mapping[str, tuple[int, ...]]  # of arrays, by name
PerClass = tuple[float | None, ...]
Role = Literal["train", "evaluate"]
ExchangeKind = Literal["round", "vote"]
Codec = Literal["fp32", "fp16", "int8"]  # protocol/codec.py
COORDINATOR = "coordinator"  # its id in messages and at the broker; no device may have it

# An id is also an MQTT topic level, a file name and the common name of a certificate.
_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
COUNT_MAX = 2**63 - 1  # the largest integer in SQLite
MAX_NORM = 1e9  # above the bound on any update's norm
MAX_WEIGHT = 2**40  # the largest `max_weight` of a plan


def normalized_name(name: str) -> str:
    """Return a class name in Unicode form NFC, in which names are compared.

    A letter with an accent has two spellings in Unicode that look the same. File systems and
    editors differ in the one that they use.
    """
    return unicodedata.normalize("NFC", name)


def check_id(value: str, what: str) -> str:
    """Return `value` if it may name a fleet, a run or a device; raise ValueError otherwise."""
    if not _ID.fullmatch(value):
        raise ValueError(
            f"{what} {value!r} is not an id: expected 1 to 64 characters of a-z, 0-9 and '-', "
            "without '-' at the start or end"
        )
    return value


def slug(text: str) -> str:
    """Turn `text` into an id; the result is empty if `text` has no ASCII letter or digit."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:64].strip("-")


def check_sha256(value: str, what: str) -> str:
    """Return `value` if it is 64 lower-case hex digits; raise ValueError otherwise."""
    if not _SHA256.fullmatch(value):
        raise ValueError(f"{what} {value[:80]!r} is not 64 lower-case hex digits")
    return value


def check_domain(value: str) -> str:
    """Return `value` if it is at most 64 printable characters; raise ValueError otherwise."""
    if len(value) > 64 or not value.isprintable():
        raise ValueError("domain: expected at most 64 printable characters")
    return value


def in_order(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the arrays in C order, with the same shapes, dtypes and values.

    safetensors writes an array's memory as it is, so another order would give wrong values.
    """
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}


def _check_array(array: np.ndarray[Any, Any], what: str, dtype: type, ndim: int) -> None:
    if array.dtype != dtype or array.ndim != ndim:
        raise ValueError(
            f"{what}: expected {np.dtype(dtype)} with {ndim} axes, "
            f"got {array.dtype} with shape {array.shape}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{what}: contains NaN or infinity")


def _check_count(value: int, what: str) -> None:
    if not 0 <= value <= COUNT_MAX:
        raise ValueError(f"{what}: expected 0 to {COUNT_MAX}, got {value}")


@dataclass(frozen=True, eq=False)
class Features:
    """Raw image features of labelled pictures, which a device trains on.

    "Raw" means before L2 normalisation; the gradients of the FedCLIP gate depend on the norm.
    Raises ValueError for a wrong shape or dtype, different lengths, NaN, infinity or a negative
    label.
    """

    vectors: F32  # (N, D)
    labels: I64  # (N,) index into the class names
    encoder_id: str

    def __post_init__(self) -> None:
        _check_array(self.vectors, "feature vectors", np.float32, 2)
        _check_array(self.labels, "labels", np.int64, 1)
        if len(self.vectors) != len(self.labels):
            raise ValueError(f"{len(self.vectors)} feature vectors but {len(self.labels)} labels")
        if len(self.labels) and self.labels.min() < 0:
            raise ValueError("labels: expected 0 or more, got a negative one")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ClassTexts:
    """Class names and their text vectors from the frozen text tower.

    Raises ValueError for fewer than two classes, names that are empty, equal or not in Unicode form
    NFC, vectors of a wrong shape or dtype or with a norm more than 1e-3 from 1, and a logit scale
    out of range.
    """

    names: tuple[str, ...]  # C of them; the order is the label
    vectors: F32  # (C, D) unit rows
    logit_scale: float  # multiplies the cosine; 100 for OpenAI's models
    prompt: str  # such as "a picture of a {}", or "unknown"

    def __post_init__(self) -> None:
        _check_array(self.vectors, "class text vectors", np.float32, 2)
        if len(self.names) != len(self.vectors):
            raise ValueError(f"{len(self.names)} class names but {len(self.vectors)} text vectors")
        if len(self.names) < 2:
            raise ValueError(f"expected two classes or more, got {len(self.names)}")
        if len(set(self.names)) != len(self.names) or not all(n.strip() for n in self.names):
            raise ValueError("class names: expected different names, none of them empty")
        for name in self.names:
            if normalized_name(name) != name:  # the digest depends on the form
                raise ValueError(f"class name {name!r}: expected Unicode form NFC, got {name!a}")
        norms = np.linalg.norm(self.vectors, axis=1)
        if np.abs(norms - 1).max() > 1e-3:
            raise ValueError(
                "class text vectors: expected unit rows, "
                f"got norms from {norms.min():.3f} to {norms.max():.3f}"
            )
        if not 0 < self.logit_scale < 1e6:
            raise ValueError(f"logit scale: expected above 0 and below 1e6, got {self.logit_scale}")

    @property
    def digest(self) -> str:
        """SHA-256 of names, vectors and logit scale, in 64 hex digits.

        Two devices may train together only if they have the same digest.
        """
        head = json.dumps([self.names, float(self.logit_scale)]).encode()
        body = np.ascontiguousarray(self.vectors, dtype="<f4").tobytes()
        return hashlib.sha256(head + b"\0" + body).hexdigest()


@dataclass(frozen=True)
class Plan:
    """Settings that all devices of a run share; the run's manifest carries them.

    `max_weight` and `max_norm` keep a single device from overflowing or dominating a sum.
    """

    method: str = "auto"  # name of the method, which decides what is trained
    options: Mapping[str, Scalar] = field(default_factory=dict)  # options of the method, by name
    rounds: int = 0  # number of rounds; 0 takes the method's default
    seed: int = 0  # seed of the initial model and of shuffling
    codec_up: Codec = "int8"  # codec of the updates that devices send
    codec_down: Codec = "fp16"  # codec of models sent to devices; the coordinator keeps float32
    grid_bits: int = 32  # updates are rounded to multiples of 2**-grid_bits and added in int64
    max_weight: int = 2**20  # updates with a larger weight are refused
    max_norm: float = 1000.0  # updates whose change of the model has a larger L2 norm are refused
    strategy: str = "fedavg"  # name of the strategy, which combines updates into the next model
    strategy_options: Mapping[str, Scalar] = field(default_factory=dict)  # options of the strategy
    # epochs that each device trains after the last round, for a personal model; 0 for none
    personal_epochs: int = 0
    vote: Literal["on", "off"] = "on"  # the devices' vote that ends a run (learning/ballot.py)
    local_baseline: bool = False  # each device also trains alone, for comparison in reports

    def __post_init__(self) -> None:
        for name, low, high in (
            ("rounds", 0, 1_000_000),
            ("seed", 0, 2**63 - 1),
            ("grid_bits", 1, 52),
            ("max_weight", 1, MAX_WEIGHT),
            ("personal_epochs", 0, 1000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name}: expected {low} to {high}, got {value}")
        if not 0 < self.max_norm < MAX_NORM:
            raise ValueError(
                f"max_norm: expected above 0 and below {MAX_NORM:g}, got {self.max_norm}"
            )
        if self.vote not in ("on", "off"):
            raise ValueError(f"vote: expected 'on' or 'off', got {self.vote!r}")
        for name in ("codec_up", "codec_down"):
            if getattr(self, name) not in get_args(Codec):
                raise ValueError(
                    f"{name}: expected one of {get_args(Codec)}, got {getattr(self, name)!r}"
                )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; `Plan(**plan.to_json()) == plan`."""
        plain = {"options": dict(self.options), "strategy_options": dict(self.strategy_options)}
        return {**asdict(self), **plain}


@dataclass(frozen=True, eq=False)
class Model:
    """Parameters of a method after a round: float32 arrays by name, empty for zero-shot."""

    method: str
    round: int  # rounds closed so far; 0 is the initial model
    parameters: Arrays

    def __post_init__(self) -> None:
        _check_count(self.round, "model round")
        for name, term in self.parameters.items():
            _check_array(term, f"model term {name}", np.float32, term.ndim)


@dataclass(frozen=True, eq=False)
class Update:
    """A client update: the weight, delta and integer sums of one device in a round.

    Kind "sum": the deltas of all devices are added and divided by the sum of their weights.
    Kind "single": updates stay separate, for strategies that need each one (median, Krum).

    `sums` holds int64 arrays. Every codec keeps them exact, and the coordinator adds them exactly.
    """

    kind: Literal["sum", "single"]
    weight: int
    delta: Arrays  # float32, already multiplied by the weight
    sums: Sums = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in ("sum", "single"):
            raise ValueError(f"update kind: expected sum or single, got {self.kind!r}")
        if self.weight < 1:
            raise ValueError(f"update weight: expected 1 or more, got {self.weight}")
        for name, term in self.delta.items():
            _check_array(term, f"update term {name}", np.float32, term.ndim)
        for name, numbers in self.sums.items():
            _check_array(numbers, f"update sum {name}", np.int64, numbers.ndim)
        if both := self.delta.keys() & self.sums.keys():
            raise ValueError(f"update: {min(both)!r} is both a term and a sum")


@dataclass(frozen=True)
class Layout:
    """Shapes of the arrays in the models and the updates of one run, by name."""

    parameters: Shapes  # float32
    delta: Shapes  # of an update, float32
    sums: Shapes = field(default_factory=dict)  # of an update, int64


@dataclass(frozen=True, eq=False)
class Contribution:
    """An update with its run, round, device and exchange.

    The coordinator checks every field against the open exchange.
    """

    run: str
    round: int
    device: str
    exchange: str  # hash of all that the update depends on (`protocol.message_parts.Exchange`)
    update: Update


@dataclass(frozen=True)
class Measured:
    """Accuracies that a device measured for a model; `protocol.report.Report` explains them."""

    accuracy: Mapping[str, float]
    per_class: Mapping[str, PerClass] = field(default_factory=dict)
    test_pictures: int = 0  # that they were measured on
