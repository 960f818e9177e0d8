"""The control messages, as frozen records; what each says stands beside its fields.

Nobody waits for an answer that may never come: every message may be lost, repeated or late, and
is sent again by whoever still needs its effect. `Want` is the one repair mechanism: "send me
these chunks", said by a device of a model and by the coordinator of an update alike; to an
offer it is also the permission to upload.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from fedclip_edge.protocol.report import Report
from fedclip_edge.records import Plan, Role, check_domain, check_id, check_sha256

# AWS IoT ends at 128 KB a message; the chunk's header and the topic need some of it.
CHUNK_BYTES = 120 * 1024
# A model of a thousand million parameters is no adapter.
_MAX_PARCEL_BYTES = 2**32
MAX_CHUNKS = 2**16
_MAX_COUNT = 2**53  # exact in every JSON reader
MAX_DEVICES = 1_000_000  # so many come back within hours, and no wait overflows a clock
MAX_GAPS = 1024  # a message is at most 64 KiB
_MAX_TEXT = 128
MAX_REASON = 1000

Phase = Literal["gathering", "open", "final", "done"]


@dataclass(frozen=True)
class Blob:
    """Bytes that travel in chunks, known by their hash."""

    sha256: str
    size_bytes: int
    chunk_bytes: int = CHUNK_BYTES

    def __post_init__(self) -> None:
        check_sha256(self.sha256, "parcel sha256")
        if not 0 < self.size_bytes <= _MAX_PARCEL_BYTES:
            raise ValueError(f"size_bytes: 1 to {_MAX_PARCEL_BYTES}, got {self.size_bytes}")
        if not 1 <= self.chunk_bytes <= CHUNK_BYTES:
            raise ValueError(f"chunk_bytes: expected 1 to {CHUNK_BYTES}, got {self.chunk_bytes}")
        if self.chunks > MAX_CHUNKS:
            raise ValueError(f"{self.chunks} chunks, limit {MAX_CHUNKS}")

    @property
    def chunks(self) -> int:
        return -(-self.size_bytes // self.chunk_bytes)


@dataclass(frozen=True)
class CoordinatorState:
    """Retained birth and will of the coordinator. A new boot makes every device say hello."""

    boot: str  # random per process, so that a late will of an earlier one can be told apart
    epoch: int  # grows by one at each start; devices refuse a smaller one
    run: str
    online: bool
    key: str

    def __post_init__(self) -> None:
        _check_text(self.boot, "boot")
        check_id(self.run, "run")
        check_sha256(self.key, "key")
        _check_count(self.epoch, "epoch")


@dataclass(frozen=True)
class DeviceState:
    """Retained birth and will of a device."""

    boot: str
    online: bool

    def __post_init__(self) -> None:
        _check_text(self.boot, "boot")


@dataclass(frozen=True)
class Hello:
    """A device introduces itself: on connecting, to a new coordinator, and while unanswered."""

    boot: str
    key: str
    roles: tuple[Role, ...]
    domain: str
    encoder_id: str
    classes_digest: str
    epoch: int = 0  # the highest it has heard of; a coordinator that lost its journal rises above
    run: str = ""  # of the last manifest it believed, and
    closed: int = 0  # its closed rounds; a coordinator with an old copy of its journal has fewer

    def __post_init__(self) -> None:
        for name in ("boot", "encoder_id", "classes_digest"):
            _check_text(getattr(self, name), name)
        check_sha256(self.key, "key")
        check_domain(self.domain)
        _check_count(self.epoch, "epoch")
        _check_count(self.closed, "closed")
        if self.run:
            check_id(self.run, "run")
        if not self.roles or len(set(self.roles)) != len(self.roles):
            raise ValueError("roles: expected train, evaluate or both")


@dataclass(frozen=True)
class Manifest:
    """The run and where it stands: everything that a device needs to take part."""

    run: str
    epoch: int
    key: str
    phase: Phase
    round: int  # the one that is open, or next to open; from 1
    attempt: int  # grows when a round is repeated for want of a quorum
    model: Blob
    model_round: int  # rounds closed in that model
    plan: Plan
    encoder_id: str
    classes_digest: str
    cohort: str  # devices take part whose cohort hash (cohort.py) is not above this one
    deadline_s: float  # a duration, so that no clock has to agree; the coordinator enforces it
    devices: int = 1  # how many the fleet has: so many may come back together
    takes_part: bool | None = None  # set in the direct answer to a hello; None in the broadcast
    answers: str = ""  # the boot of that hello: an answer to an earlier process is no answer
    kept: str | None = None  # in that answer: what is kept of the device for this round, by hash

    def __post_init__(self) -> None:
        check_id(self.run, "run")
        check_sha256(self.key, "key")
        check_sha256(self.cohort, "cohort")
        for name in ("epoch", "round", "attempt", "model_round"):
            _check_count(getattr(self, name), name)
        for name in ("encoder_id", "classes_digest", "answers"):
            _check_text(getattr(self, name), name)
        if not self.deadline_s > 0:
            raise ValueError(f"deadline_s: expected above 0, got {self.deadline_s}")
        if self.plan.rounds < 1:  # 0 is said in fleet.toml alone: the method's own number
            raise ValueError("plan: a run that is announced has a round or more, got 0")
        if self.kept:
            check_sha256(self.kept, "kept")
        if not 1 <= self.devices <= MAX_DEVICES:
            raise ValueError(f"devices: expected 1 to {MAX_DEVICES}, got {self.devices}")


@dataclass(frozen=True)
class Offer:
    """A device has a contribution; the blob's hash stands for its content from here on."""

    run: str
    round: int
    parcel: Blob

    def __post_init__(self) -> None:
        check_id(self.run, "run")
        _check_count(self.round, "round")


@dataclass(frozen=True)
class Want:
    """Send me these chunks: first and last index of each gap; the first 1,024 gaps at most."""

    sha256: str
    missing: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        check_sha256(self.sha256, "sha256")
        if not self.missing or any(not 0 <= first <= last for first, last in self.missing):
            raise ValueError("missing: expected pairs of first and last chunk")
        if len(self.missing) > MAX_GAPS:
            raise ValueError(f"missing: at most {MAX_GAPS} gaps, got {len(self.missing)}")
        # Each chunk at most once, or a small message would cost its receiver many large ones.
        if any(after <= last for (_, last), (after, _) in pairwise(self.missing)):
            raise ValueError("missing: expected gaps in order and apart")


@dataclass(frozen=True)
class Kept:
    """The contribution is on the coordinator's disk; the device may forget it."""

    run: str
    round: int
    sha256: str

    def __post_init__(self) -> None:
        check_id(self.run, "run")
        _check_count(self.round, "round")
        check_sha256(self.sha256, "sha256")


@dataclass(frozen=True)
class Refused:
    """The coordinator will not take it. `final`: nor anything else from this device in this run."""

    reason: str
    final: bool
    sha256: str = ""  # of the contribution refused, or empty
    key: str = ""  # of the device refused for good: another one may speak under the same id
    # Rounds closed when it was said. A contribution to one of these is refused for ever; to the
    # round that is open it may still be taken, so that is no answer to rely on: it may come late.
    closed: int = 0

    def __post_init__(self) -> None:
        _check_count(self.closed, "closed")
        if len(self.reason) > MAX_REASON:
            raise ValueError(f"reason: at most {MAX_REASON} characters, got {len(self.reason)}")
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
