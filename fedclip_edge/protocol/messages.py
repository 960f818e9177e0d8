"""The control messages, as frozen records; comments at the fields explain them.

Three concepts serve everything that is exchanged. A hello tells the coordinator what the device
can do and allows (its capabilities). A blob is anything large: it is announced by its hash, sent in
chunks, and verified before use. An exchange is a named step of a run, in which each device gives
one answer.

Laws:
- Any message may be lost, repeated or late. The party that still needs its effect sends it again;
  no party blocks on an answer.
- `Want` is the only repair mechanism: "send me these chunks". A device sends it for a model, the
  coordinator for an update; in answer to an offer it is also the permission to upload.
- Everything that an answer depends on is in the hash of its exchange. So an answer to another
  exchange of the same number is recognised, also after a restart of either side.
- A constructor raises ValueError for a field outside its range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from fedclip_edge.protocol.hand_over import MAX_HAND_OVERS, HandOver
from fedclip_edge.protocol.report import Report
from fedclip_edge.records import (
    COUNT_MAX,
    MAX_NORM,
    ExchangeKind,
    Plan,
    Role,
    check_domain,
    check_id,
    check_sha256,
)

# AWS IoT takes at most 128 KB a message; the chunk's header and the topic need part of it.
CHUNK_BYTES = 120 * 1024
# 4 GiB, a billion float32 parameters: far more than any adapter has.
_MAX_BLOB_BYTES = 2**32
MAX_CHUNKS = 2**16
_MAX_COUNT = 2**53  # exact in every JSON reader
MAX_DEVICES = 1_000_000  # this many reconnect within hours; far more could overflow a timer
MAX_GAPS = 1024  # so that a Want stays below a control message's 64 KiB
_MAX_TEXT = 128
MAX_REASON = 1000
_MAX_NAMES = 64
MAX_CLASSES = 1000  # names of classes in one message, or counts of their pictures
SIDES = ("train", "validation", "test")  # of the split of a device's pictures

Phase = Literal["gathering", "open", "final", "done"]
# "bundle" is the signed description of a bundle, the last three are its files.
BlobKind = Literal["model", "update", "bundle", "encoder", "classes", "golden"]
# What a refusal refuses: one contribution; the device, in this run; the device, for ever.
Scope = Literal["contribution", "run", "device"]


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
            _check_count(getattr(self, name), name)
        for side, counts in self.by_class.items():
            if side not in SIDES:
                raise ValueError(f"by_class: expected the sides {SIDES}, got {side[:40]!r}")
            if len(counts) > MAX_CLASSES:
                raise ValueError(f"by_class: at most {MAX_CLASSES} classes, got {len(counts)}")
            for count in counts:
                _check_count(count, f"by_class of {side}")

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

    def __post_init__(self) -> None:
        _check_count(self.min_per_class, "min_per_class")
        _check_text(self.provider, "provider")
        if len(set(self.roles)) != len(self.roles):
            raise ValueError("roles: expected each at most once")
        for name in ("methods", "codecs"):
            names = getattr(self, name)
            if len(names) > _MAX_NAMES or len(set(names)) != len(names):
                raise ValueError(f"{name}: expected at most {_MAX_NAMES} different names")
            for one in names:
                _check_text(one, name)


@dataclass(frozen=True)
class Address:
    """Host and port of a broker."""

    host: str
    port: int

    def __post_init__(self) -> None:
        _check_text(self.host, "host")
        if not self.host.strip():
            raise ValueError("host: expected a host name or an IP address")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port: expected 1 to 65535, got {self.port}")


@dataclass(frozen=True)
class CoordinatorState:
    """The coordinator's retained state, online (its birth message) or offline (also its will).

    A new `boot` makes every device send a hello.
    """

    boot: str  # random per process, so that a late will of an earlier process is recognised
    epoch: int  # grows with each start; devices refuse a smaller one
    run: str
    online: bool
    key: str
    # From earlier keys, oldest first: a device that knows one of them accepts `key`.
    hand_overs: tuple[HandOver, ...] = ()
    moved_to: Address | None = None  # the broker's address, if it has moved

    def __post_init__(self) -> None:
        if len(self.hand_overs) > MAX_HAND_OVERS:
            raise ValueError(f"hand_overs: at most {MAX_HAND_OVERS}, got {len(self.hand_overs)}")
        _check_text(self.boot, "boot")
        check_id(self.run, "run")
        check_sha256(self.key, "key")
        _check_count(self.epoch, "epoch")


@dataclass(frozen=True)
class Encoding:
    """The progress of a device that encodes its pictures."""

    done: int  # pictures whose features are ready
    total: int

    def __post_init__(self) -> None:
        _check_count(self.done, "done")
        _check_count(self.total, "total")


@dataclass(frozen=True)
class DeviceState:
    """A device's retained state, online (its birth message) or offline (also its will)."""

    boot: str
    online: bool
    encoding: Encoding | None = None  # while it encodes, before its first hello

    def __post_init__(self) -> None:
        _check_text(self.boot, "boot")


@dataclass(frozen=True)
class Hello:
    """A device's introduction on each link, to each new coordinator; repeated until answered.

    The coordinator refuses a device that cannot, or may not, take part in its run.
    """

    boot: str
    key: str
    domain: str
    encoder_id: str
    classes_digest: str
    capabilities: Capabilities
    # The highest epoch that the device has seen. A coordinator that lost its journal claims a
    # higher one.
    epoch: int = 0
    # Run and closed rounds of the last manifest that the device accepted. A coordinator that was
    # restored from an old copy of its journal has fewer closed rounds and detects this.
    run: str = ""
    closed: int = 0

    def __post_init__(self) -> None:
        for name in ("boot", "encoder_id", "classes_digest"):
            _check_text(getattr(self, name), name)
        check_sha256(self.key, "key")
        check_domain(self.domain)
        _check_count(self.epoch, "epoch")
        _check_count(self.closed, "closed")
        if self.run:
            check_id(self.run, "run")


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
        if not 1 <= self.number <= _MAX_COUNT:
            raise ValueError(f"number: expected 1 to {_MAX_COUNT}, got {self.number}")
        if not 0 < self.max_norm < MAX_NORM:
            raise ValueError(
                f"max_norm: expected above 0 and below {MAX_NORM:g}, got {self.max_norm}"
            )


@dataclass(frozen=True)
class Manifest:
    """The state of a run: everything that a device needs to take part."""

    run: str
    epoch: int
    key: str
    phase: Phase
    exchange: Exchange  # the one that is open, or opens next; the last one if none is left
    attempt: int  # grows when the exchange is repeated because it had no quorum
    closed: int  # exchanges of the run that are closed
    model: Blob  # the newest one
    plan: Plan
    encoder_id: str
    classes_digest: str
    cohort: str  # a device takes part if its cohort hash (cohort.py) is not above this one
    deadline_s: float  # a duration, so that clocks need not agree; the coordinator enforces it
    devices: int = 1  # size of the fleet: this many may reconnect at once
    takes_part: bool | None = None  # set in the answer to a hello; None in the broadcast
    answers: str = ""  # the boot of that hello; a device ignores an answer to an earlier process
    bundle: Blob | None = None  # the run's bundle, for devices that have another one; if signed
    # In that answer: SHA-256 of the contribution kept from the device in this round, "" if none.
    kept: str | None = None

    def __post_init__(self) -> None:
        check_id(self.run, "run")
        check_sha256(self.key, "key")
        check_sha256(self.cohort, "cohort")
        for name in ("epoch", "attempt", "closed"):
            _check_count(getattr(self, name), name)
        for name in ("encoder_id", "classes_digest", "answers"):
            _check_text(getattr(self, name), name)
        if not self.deadline_s > 0:
            raise ValueError(f"deadline_s: expected above 0, got {self.deadline_s}")
        if self.plan.rounds < 1:  # 0, for the method's default, is allowed in fleet.toml only
            raise ValueError("plan: expected 1 or more rounds in a manifest, got 0")
        if self.kept:
            check_sha256(self.kept, "kept")
        if not 1 <= self.devices <= MAX_DEVICES:
            raise ValueError(f"devices: expected 1 to {MAX_DEVICES}, got {self.devices}")


@dataclass(frozen=True)
class Offer:
    """A device's announcement of its answer; later messages name it by the blob's hash."""

    run: str
    number: int  # of the exchange
    blob: Blob

    def __post_init__(self) -> None:
        check_id(self.run, "run")
        _check_count(self.number, "number")


@dataclass(frozen=True)
class Want:
    """A request for chunks: first and last index of each gap, at most the first 1,024 gaps."""

    sha256: str
    missing: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        check_sha256(self.sha256, "sha256")
        if not self.missing or any(not 0 <= first <= last for first, last in self.missing):
            raise ValueError("missing: expected pairs of first and last chunk, from 0")
        if len(self.missing) > MAX_GAPS:
            raise ValueError(f"missing: at most {MAX_GAPS} gaps, got {len(self.missing)}")
        # Each chunk at most once: otherwise a small message could request a large amount of data.
        if any(after <= last for (_, last), (after, _) in pairwise(self.missing)):
            raise ValueError("missing: expected gaps in ascending order without overlap")


@dataclass(frozen=True)
class Kept:
    """Confirmation that an answer is on the coordinator's disk; the device may delete it."""

    run: str
    number: int  # of the exchange
    sha256: str

    def __post_init__(self) -> None:
        check_id(self.run, "run")
        _check_count(self.number, "number")
        check_sha256(self.sha256, "sha256")


@dataclass(frozen=True)
class Refused:
    """The coordinator's refusal of a contribution, or of a device.

    A device that is refused in a run, such as one with another bundle, waits and says hello again
    later: the next run may be another one. A device that is refused for ever stops.
    """

    reason: str
    scope: Scope
    sha256: str = ""  # of the contribution refused, or empty
    key: str = ""  # of the device that is refused; another device may use the same id
    # Exchanges closed when the refusal was sent. Answers to these are refused permanently. An
    # answer to the open one may still be accepted: the refusal may be late, so a device does not
    # rely on it.
    closed: int = 0
    # Names of the run's classes, if the device is refused because it has others; or empty.
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_count(self.closed, "closed")
        if len(self.reason) > MAX_REASON:
            raise ValueError(f"reason: at most {MAX_REASON} characters, got {len(self.reason)}")
        if len(self.classes) > MAX_CLASSES:
            raise ValueError(f"classes: at most {MAX_CLASSES} names, got {len(self.classes)}")
        for one in self.classes:
            _check_text(one, "classes")
        for name in ("sha256", "key"):
            if getattr(self, name):
                check_sha256(getattr(self, name), name)


def _check_text(value: str, what: str) -> None:
    if len(value) > _MAX_TEXT or not value.isprintable():
        raise ValueError(f"{what}: expected at most {_MAX_TEXT} printable characters")


def _check_count(value: int, what: str) -> None:
    if not 0 <= value <= _MAX_COUNT:
        raise ValueError(f"{what}: expected 0 to {_MAX_COUNT}, got {value}")


Message = CoordinatorState | DeviceState | Hello | Manifest | Offer | Want | Kept | Refused | Report

KINDS: Mapping[str, type[Message]] = {
    "coordinator": CoordinatorState,
    "device": DeviceState,
    "hello": Hello,
    "manifest": Manifest,
    "offer": Offer,
    "want": Want,
    "kept": Kept,
    "refused": Refused,
    "report": Report,
}
