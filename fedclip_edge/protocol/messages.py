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
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from fedclip_edge.protocol.hand_over import MAX_HAND_OVERS, HandOver
from fedclip_edge.protocol.message_parts import (
    MAX_CLASSES,
    Activity,
    Address,
    Blob,
    Capabilities,
    Encoding,
    Exchange,
    check_count,
    check_text,
)
from fedclip_edge.protocol.report import Report
from fedclip_edge.records import (
    Plan,
    check_domain,
    check_id,
    check_sha256,
)

MAX_DEVICES = 1_000_000  # this many reconnect within hours; far more could overflow a timer
MAX_GAPS = 1024  # so that a Want stays below a control message's 64 KiB
MAX_REASON = 1000

Phase = Literal["gathering", "open", "final", "done"]
# What a refusal refuses: one contribution; the device, in this run; the device, for ever.
Scope = Literal["contribution", "run", "device"]


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
        check_text(self.boot, "boot")
        check_id(self.run, "run")
        check_sha256(self.key, "key")
        check_count(self.epoch, "epoch")


@dataclass(frozen=True)
class DeviceState:
    """A device's retained state, online (its birth message) or offline (also its will)."""

    boot: str
    online: bool
    encoding: Encoding | None = None  # while it encodes, before its first hello
    activity: Activity = "waiting"  # told once it has lasted a while, except for "paused"
    reason: str = ""  # why a device that stays connected is offline; empty in the will

    def __post_init__(self) -> None:
        check_text(self.boot, "boot")
        check_text(self.reason, "reason")


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
            check_text(getattr(self, name), name)
        check_sha256(self.key, "key")
        check_domain(self.domain)
        check_count(self.epoch, "epoch")
        check_count(self.closed, "closed")
        if self.run:
            check_id(self.run, "run")


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
            check_count(getattr(self, name), name)
        for name in ("encoder_id", "classes_digest", "answers"):
            check_text(getattr(self, name), name)
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
        check_count(self.number, "number")


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
        check_count(self.number, "number")
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
        check_count(self.closed, "closed")
        if len(self.reason) > MAX_REASON:
            raise ValueError(f"reason: at most {MAX_REASON} characters, got {len(self.reason)}")
        if len(self.classes) > MAX_CLASSES:
            raise ValueError(f"classes: at most {MAX_CLASSES} names, got {len(self.classes)}")
        for one in self.classes:
            check_text(one, "classes")
        for name in ("sha256", "key"):
            if getattr(self, name):
                check_sha256(getattr(self, name), name)


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
