"""What must hold of a device's own memory, checked on its disk from outside after each commit.

What a device should send is worked out anew: what training made of the model, from the journal's
own copy of that, plus what the last update that was kept had lost. So a residual that is lost, or
added twice, or that of an update that nobody kept, gives other bytes than these.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from broken_law import BrokenLawError

from fedclip_edge.agent.state_db import RunPosition, StateDb
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.messages import Manifest
from fedclip_edge.records import Arrays, Contribution, Model, Update

if TYPE_CHECKING:
    from laws import Laws


def update_of(model: Model, device: str, variant: str) -> Update:
    """What a device makes of a model: cheap, of its own, and the same every time."""
    content = b"".join(model.parameters[name].tobytes() for name in sorted(model.parameters))
    return _update(content, tuple(sorted(model.parameters)), device, variant)


@functools.lru_cache(maxsize=4096)
def _update(content: bytes, names: tuple[str, ...], device: str, variant: str) -> Update:
    digest = hashlib.sha256(content + f"{device}/{variant}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    weight = 1 + digest[8] % 3
    dim = int(np.sqrt(len(content) / 8 + 0.25))  # two square layers, and a bias to each
    shapes = {name: (dim, dim) if name.endswith("weight") else (dim,) for name in names}
    terms = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Update("sum", weight, terms)


@dataclass(eq=False)
class Made:
    """An update as a device should have made it."""

    round: int
    base: str  # the version of the model it was made from
    sha256: str
    update: Update  # as the coordinator reads it
    left: Arrays  # what it lost
    count: int  # the method's own state: how many were kept before it, and itself
    kept: bool = False  # as its device knows


@dataclass(eq=False)
class Memory:
    """What one disk should hold, from the day that it was empty."""

    device: str
    floor: RunPosition = field(default_factory=RunPosition)
    made: dict[str, list[Made]] = field(default_factory=dict)  # by run
    tried: dict[tuple[str, int], list[str]] = field(default_factory=dict)  # run, closed: variants
    believed: int = 0  # the highest epoch of a manifest
    part_of: str = ""  # the run that it believed a manifest of before that was done
    ended: str = ""  # the run that it is done with
    pending: str | None = None  # what lay there when it was looked at last


def trains(memory: Memory, run: str, closed: int, variant: str) -> None:
    """A process on that disk trains from the model of so many rounds; it may be killed in it."""
    tried = memory.tried.setdefault((run, closed), [])
    if variant not in tried:
        tried.append(variant)


def believes(memory: Memory, manifest: Manifest) -> None:
    """A process on that disk takes a manifest for true."""
    if manifest.epoch < memory.believed:
        raise BrokenLawError(
            "epochs",
            f"{memory.device} believes epoch {manifest.epoch} after {memory.believed}",
        )
    memory.believed = manifest.epoch
    if manifest.phase != "done":
        memory.part_of = manifest.run


def offers(memory: Memory, payload: bytes, disk: StateDb, *, writing: bool) -> None:
    """An offer leaves a process on that disk."""
    offer = json.loads(payload.partition(b"\n")[0])["body"]
    pending = disk.pending_update(offer["run"])
    if writing or pending is None or pending.sha256 != offer["parcel"]["sha256"]:
        raise BrokenLawError(
            "parked", f"{memory.device} offers for round {offer['round']} what is not on its disk"
        )


def check(laws: Laws, memory: Memory, disk: StateDb) -> None:
    """The disk, after a commit or a restart."""
    floor = disk.position
    if memory.floor.is_newer_than(floor):
        raise BrokenLawError("epochs", f"{memory.device} fell from {memory.floor} to {floor}")
    memory.floor = floor
    if floor.over:
        memory.ended = floor.run
    run = laws.run.id
    rows = disk._rows(
        "SELECT kept, (SELECT sha256 FROM parked WHERE run = id) FROM run WHERE id = ?", run
    )
    if not rows:
        return
    kept, pending = rows[0]
    made = memory.made.setdefault(run, [])
    last = next((one.sha256 for one in reversed(made) if one.kept), "")
    if kept != last:
        _take_kept(laws, memory, disk, kept)
    # The same bytes may be made again, for a coordinator that lost its journal. They leave the same
    # while they are the last kept; after another one they may leave something else.
    if pending is not None and pending not in (memory.pending, kept):
        made[:] = [one for one in made if one.sha256 != pending]
        _take_pending(laws, memory, disk)
    memory.pending = pending


def _take_kept(laws: Laws, memory: Memory, disk: StateDb, sha256: str) -> None:
    """The device knows now that this one is kept."""
    run = laws.run.id
    one = next((one for one in reversed(memory.made[run]) if one.sha256 == sha256), None)
    if one is None or not laws.was_acknowledged(memory.device, one.round, sha256):
        raise BrokenLawError("residual", f"{memory.device} takes for kept what nobody kept")
    one.kept = True
    memory.made[run].remove(one)
    memory.made[run].append(one)
    carried = disk.carry_over(run)
    if not _same(carried.residual, one.left) or int(carried.state["kept"]) != one.count:
        raise BrokenLawError(
            "residual", f"{memory.device} carries on another residual than round {one.round} left"
        )


def _take_pending(laws: Laws, memory: Memory, disk: StateDb) -> None:
    """The device has made another update."""
    run = laws.run.id
    pending, made = disk.pending_update(run), memory.made[run]
    assert pending is not None
    for one in made:
        if not one.kept and laws.keeps(memory.device, one.round, one.sha256):
            raise BrokenLawError(
                "residual",
                f"{memory.device} makes an update for round {pending.round} and does not know that "
                f"its one to round {one.round} is kept",
            )
    base = wire.unpack_contribution(pending.payload, laws.run.plan.codec_up, laws.shapes).base
    if laws.known.get(base) != pending.round - 1:
        raise BrokenLawError("equal", f"{memory.device} makes an update of a model that never was")
    before = next((one for one in reversed(made) if one.kept), None)
    for variant in memory.tried.get((run, pending.round - 1), ()):
        one = _make(laws, memory.device, base, variant, before)
        if one.sha256 == pending.sha256:
            made.append(one)
            laws.made[memory.device, one.sha256] = one
            return
    raise BrokenLawError(
        "residual",
        f"{memory.device}'s update for round {pending.round} is not what it trained and what the "
        "last kept one lost",
    )


def _make(laws: Laws, device: str, base: str, variant: str, before: Made | None) -> Made:
    run, residual = laws.run, {} if before is None else before.left
    update = update_of(laws.received(base), device, variant)
    number = laws.known[base] + 1
    meant = {name: term + residual.get(name, 0) for name, term in update.delta.items()}
    contribution = Contribution(
        run=run.id,
        round=number,
        device=device,
        base=base,
        encoder_id=run.encoder_id,
        classes_digest=run.classes_digest,
        update=Update("sum", update.weight, meant),
    )
    body = wire.pack_contribution(contribution, run.plan.codec_up)
    received = wire.unpack_contribution(body, run.plan.codec_up, laws.shapes).update
    left = {name: term - received.delta[name] for name, term in meant.items()}
    return Made(
        round=number,
        base=base,
        sha256=hashlib.sha256(body).hexdigest(),
        update=received,
        left=left if any(term.any() for term in left.values()) else {},
        count=1 if before is None else before.count + 1,
    )


def _same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(
        one[name].tobytes() == other[name].tobytes() for name in one
    )
