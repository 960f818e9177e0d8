"""Records that are parts of control messages, and the checks of their fields.

A constructor raises ValueError for a field outside its range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedclip_edge.records import COUNT_MAX, MAX_NORM, ExchangeKind, Role, check_sha256

# AWS IoT takes at most 128 KB a message; the chunk's header and the topic need part of it.
CHUNK_BYTES = 120 * 1024
# 4 GiB, a billion float32 parameters: far more than any adapter has.
_MAX_BLOB_BYTES = 2**32
MAX_CHUNKS = 2**16
MAX_COUNT = 2**53  # exact in every JSON reader
MAX_TEXT = 128
_MAX_NAMES = 64
MAX_CLASSES = 1000  # names of classes in one message, or counts of their pictures
SIDES = ("train", "validation", "test")  # of the split of a device's pictures

# What a device does; it downloads a model, or trains and evaluates with one.
Activity = Literal["waiting", "downloading", "training", "evaluating", "paused"]
# "bundle" is the signed description of a bundle, the last three are its files.
BlobKind = Literal["model", "update", "bundle", "encoder", "classes", "golden"]


@dataclass(frozen=True)
class Blob:
    """A payload as announced: its hash, its size, its kind and the size of its chunks."""

    sha256: str
    size_bytes: int
    kind: BlobKind
    chunk_bytes: int = CHUNK_BYTES

    def __post_init__(self) -> None:
        check_sha256(self.sha256, "blob sha256")
        if not 0 < self.size_bytes <= _MAX_BLOB_BYTES:
            raise ValueError(f"size_bytes: expected 1 to {_MAX_BLOB_BYTES}, got {self.size_bytes}")
        if not 1 <= self.chunk_bytes <= CHUNK_BYTES:
            raise ValueError(f"chunk_bytes: expected 1 to {CHUNK_BYTES}, got {self.chunk_bytes}")
        if self.chunks > MAX_CHUNKS:
            raise ValueError(f"{self.chunks} chunks, limit {MAX_CHUNKS}")

    @property
    def chunks(self) -> int:
        return -(-self.size_bytes // self.chunk_bytes)


@dataclass(frozen=True)
class Pictures:
    """The number of pictures with features on a device, by the side that they are used for.

    Pictures that are withheld for privacy are on no side.
    """

    train: int = 0
    validation: int = 0
    test: int = 0
    withheld: int = 0
    # The pictures of each class, in the order of the class names, by side. A side that is not in it
    # is not told: its owner keeps it, or there are more than MAX_CLASSES classes.
    by_class: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test", "withheld"):
            check_count(getattr(self, name), name)
        for side, counts in self.by_class.items():
            if side not in SIDES:
                raise ValueError(f"by_class: expected the sides {SIDES}, got {side[:40]!r}")
            if len(counts) > MAX_CLASSES:
                raise ValueError(f"by_class: at most {MAX_CLASSES} classes, got {len(counts)}")
            for count in counts:
                check_count(count, f"by_class of {side}")

    @property
    def labelled(self) -> int:
        """All labelled pictures of the device; at most COUNT_MAX."""
        return min(COUNT_MAX, self.train + self.validation + self.test + self.withheld)


@dataclass(frozen=True)
class Capabilities:
    """Capabilities of a device: what it supports, what its owner allows, and its pictures."""

    roles: tuple[Role, ...]  # empty for a device that only receives models
    methods: tuple[str, ...]
    codecs: tuple[str, ...]
    min_per_class: int  # pictures of classes with fewer than this are withheld, for privacy
    pictures: Pictures
    provider: str = ""  # where its encoder runs: cpu, openvino-bf16, ...; empty if it does not say
    version: str = ""  # of its program, for people; empty if it does not say

    def __post_init__(self) -> None:
        check_count(self.min_per_class, "min_per_class")
        check_text(self.provider, "provider")
        check_text(self.version, "version")
        if len(set(self.roles)) != len(self.roles):
            raise ValueError("roles: expected each at most once")
        for name in ("methods", "codecs"):
            names = getattr(self, name)
            if len(names) > _MAX_NAMES or len(set(names)) != len(names):
                raise ValueError(f"{name}: expected at most {_MAX_NAMES} different names")
            for one in names:
                check_text(one, name)


@dataclass(frozen=True)
class Address:
    """Host and port of a broker."""

    host: str
    port: int

    def __post_init__(self) -> None:
        check_text(self.host, "host")
        if not self.host.strip():
            raise ValueError("host: expected a host name or an IP address")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port: expected 1 to 65535, got {self.port}")


@dataclass(frozen=True)
class Encoding:
    """The progress of a device that encodes its pictures."""

    done: int  # pictures whose features are ready
    total: int

    def __post_init__(self) -> None:
        check_count(self.done, "done")
        check_count(self.total, "total")


@dataclass(frozen=True)
class Exchange:
    """A named step of a run, to which each device of the cohort gives one answer.

    The answer to a round is an update; that to a vote are integer sums over validation pictures,
    in place of an update. Both close with a new model.
    """

    kind: ExchangeKind
    number: int  # its place among the exchanges of its run, from 1
    # Hash of everything that an answer depends on: run, kind, number, model, plan, encoder, classes
    # and bounds. Only the coordinator computes it; a device repeats it in its answer.
    sha256: str
    max_norm: float  # updates whose change of the model has a larger L2 norm are refused

    def __post_init__(self) -> None:
        check_sha256(self.sha256, "exchange sha256")
        if not 1 <= self.number <= MAX_COUNT:
            raise ValueError(f"number: expected 1 to {MAX_COUNT}, got {self.number}")
        if not 0 < self.max_norm < MAX_NORM:
            raise ValueError(
                f"max_norm: expected above 0 and below {MAX_NORM:g}, got {self.max_norm}"
            )


def check_text(value: str, what: str) -> None:
    """Raise ValueError unless the text is short and printable."""
    if len(value) > MAX_TEXT or not value.isprintable():
        raise ValueError(f"{what}: expected at most {MAX_TEXT} printable characters")


def check_count(value: int, what: str) -> None:
    """Raise ValueError unless the number is from 0 to MAX_COUNT."""
    if not 0 <= value <= MAX_COUNT:
        raise ValueError(f"{what}: expected 0 to {MAX_COUNT}, got {value}")
