"""Laws of a device's stored state, checked on its disk from outside after each commit.

The expected update is computed again: the change that training makes to the model in the journal,
plus the residual of the last kept update. If a residual is lost, added twice, or taken from an
update that was not kept, the bytes differ.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from broken_law import BrokenLawError

from fedclip_edge.agent.state_db import RunPosition, StateDb
from fedclip_edge.learning import ballot, methods, moments
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.messages import Manifest
from fedclip_edge.records import Arrays, Contribution, Features, Model, Update

if TYPE_CHECKING:
    from laws import Laws


HEAVY = "-heavy"  # the end of a variant whose answers have a weight that is refused
_NORM = 0.012  # of each update; with equal norms, no update is above the bound of its round


def answer_of(schedule: Schedule, model: Model, device: str, variant: str) -> Update:
    """The answer of a device to the exchange after a model: an update, or a vote."""
    if schedule.steps[model.round].kind == "round":
        if methods.get(model.method).traits.sends_moments:
            return _moments(schedule, device, variant)
        return update_of(model, device, variant)
    return _vote(_bytes(model), tuple(schedule.layout(model.round).sums.items()), device, variant)


def update_of(model: Model, device: str, variant: str) -> Update:
    """The update of a device from a model: cheap, different per device, and deterministic."""
    return _update(_bytes(model), tuple(sorted(model.parameters)), device, variant)


def _bytes(model: Model) -> bytes:
    return b"".join(model.parameters[name].tobytes() for name in sorted(model.parameters))


@functools.lru_cache(maxsize=4096)
def _update(content: bytes, names: tuple[str, ...], device: str, variant: str) -> Update:
    digest = hashlib.sha256(content + f"{device}/{variant}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    weight = 1000 if variant.endswith(HEAVY) else 1  # more pictures than a device declares
    dim = int(np.sqrt(len(content) / 8 + 0.25))  # two square layers, each with a bias
    shapes = {name: (dim, dim) if name.endswith("weight") else (dim,) for name in names}
    drawn = {name: random.normal(size=shape) for name, shape in shapes.items()}
    norm = np.sqrt(sum(np.square(values).sum() for values in drawn.values()))
    terms = {
        name: (_NORM * weight / norm * values).astype(np.float32) for name, values in drawn.items()
    }
    return Update("sum", weight, terms)


def _moments(schedule: Schedule, device: str, variant: str) -> Update:
    """Exact sums over drawn pictures."""
    digest = hashlib.sha256(f"{device}/{variant}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    classes = len(schedule.classes.names)
    train, validation = (
        Features(
            random.normal(size=(count, schedule.dim)).astype(np.float32),
            np.arange(count) % classes,
            "e" * 64,
        )
        for count in (30, int(random.choice([0, 12])))
    )
    update = moments.update(train, validation, classes, 1)
    return replace(update, weight=1000) if variant.endswith(HEAVY) else update


@functools.lru_cache(maxsize=4096)
def _vote(
    content: bytes, shapes: tuple[tuple[str, tuple[int, ...]], ...], device: str, variant: str
) -> Update:
    """A drawn answer to a vote that `ballot.check` accepts; two devices often make a choice."""
    digest = hashlib.sha256(content + f"{device}/{variant}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    count = int(random.choice([0, 5, 16, 60, 500]))
    sums = {name: np.zeros(shape, np.int64) for name, shape in shapes}
    candidates, temperatures = sums["loss"].shape
    costs = random.integers(0, 2**20, (candidates, temperatures, count)) / 2**16
    # Often one candidate is clearly better than all others.
    costs[random.integers(candidates)] /= random.choice([1, 10])
    sums["pictures"][:] = count
    hits = random.random((candidates, count)) < random.random((candidates, 1))
    sums["correct"][:] = hits.sum(axis=1)
    sums["differ"][:] = (hits != hits[ballot.DEFAULT]).sum(axis=1)
    sums["loss"][:] = np.rint(costs * 2**16).sum(axis=2)
    sums["squares"][:] = np.rint((costs - costs[ballot.DEFAULT]) ** 2 * 2**16).sum(axis=2)
    for name in ("known", "removed"):
        sums[name][:, random.integers(sums[name].shape[1])] = count
    weight = max(1, count) + (1 if variant.endswith(HEAVY) else 0)
    return Update("sum", weight, {}, sums)


@dataclass(eq=False)
class Made:
    """An expected update of a device."""

    round: int
    base: str  # version of the model that it was made from
    sha256: str
    update: Update  # as the coordinator reads it
    left: Arrays  # the residual
    kept: bool = False  # according to the device


@dataclass(eq=False)
class Memory:
    """The expected contents of one disk since it was empty."""

    device: str
    floor: RunPosition = field(default_factory=RunPosition)
    made: dict[str, list[Made]] = field(default_factory=dict)  # by run
    # (run, closed rounds): variants.
    tried: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    believed: int = 0  # highest epoch of a believed manifest
    part_of: str = ""  # the run of the last believed manifest that was not done
    ended: str = ""  # the run that has ended for the device
    pending: str | None = None  # hash of the pending update at the last check


def trains(memory: Memory, run: str, closed: int, variant: str) -> None:
    """Record that training begins with the model of `closed` rounds; a kill may interrupt it."""
    tried = memory.tried.setdefault((run, closed), [])
    if variant not in tried:
        tried.append(variant)


def believes(memory: Memory, manifest: Manifest) -> None:
    """Record that the device believes a manifest, and check its epoch."""
    if manifest.epoch < memory.believed:
        raise BrokenLawError(
            "epochs",
            f"{memory.device} believes epoch {manifest.epoch} after {memory.believed}",
        )
    memory.believed = manifest.epoch
    if manifest.phase != "done":
        memory.part_of = manifest.run


def offers(memory: Memory, payload: bytes, disk: StateDb, *, writing: bool) -> None:
    """Check an offer: the update must be on the disk, and no write may be open."""
    offer = json.loads(payload.partition(b"\n")[0])["body"]
    pending = disk.pending_update(offer["run"])
    if writing or pending is None or pending.sha256 != offer["blob"]["sha256"]:
        raise BrokenLawError(
            "parked", f"{memory.device} offers for round {offer['number']} what is not on its disk"
        )


def check(laws: Laws, memory: Memory, disk: StateDb) -> None:
    """Check the disk after a commit or a restart."""
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
        # The run is over, and what was stored of it is forgotten. An old copy of the journal can
        # bring the same run back: the device then begins without a residual.
        memory.made.pop(run, None)
        return
    kept, pending = rows[0]
    made = memory.made.setdefault(run, [])
    last = next((one.sha256 for one in reversed(made) if one.kept), "")
    if kept != last:
        _take_kept(laws, memory, disk, kept)
    # The same bytes may be made again for a coordinator that lost its journal. Their residual is
    # the same while they are the last kept update; after another one it may differ.
    if pending is not None and pending not in (memory.pending, kept):
        made[:] = [one for one in made if one.sha256 != pending]
        _take_pending(laws, memory, disk)
    memory.pending = pending


def _take_kept(laws: Laws, memory: Memory, disk: StateDb, sha256: str) -> None:
    """Check the disk after the device learned that this update was kept."""
    run = laws.run.id
    one = next((one for one in reversed(memory.made[run]) if one.sha256 == sha256), None)
    if one is None or not laws.was_acknowledged(memory.device, one.round, sha256):
        raise BrokenLawError(
            "residual",
            f"{memory.device} believes that an update was kept that no coordinator acknowledged",
        )
    one.kept = True
    memory.made[run].remove(one)
    memory.made[run].append(one)
    if not _same(disk.residual(run), one.left):
        raise BrokenLawError(
            "residual",
            f"{memory.device} carries over a residual that is not what round {one.round} left",
        )


def _take_pending(laws: Laws, memory: Memory, disk: StateDb) -> None:
    """Check the disk after the device made another update."""
    run = laws.run.id
    pending, made = disk.pending_update(run), memory.made[run]
    assert pending is not None
    for one in made:
        if not one.kept and laws.keeps(memory.device, one.round, one.sha256):
            raise BrokenLawError(
                "residual",
                f"{memory.device} makes an update for round {pending.round} and does not know that "
                f"its update for round {one.round} was kept",
            )
    layout = laws.schedule.layout(pending.round - 1)
    sent = wire.unpack_contribution(
        pending.payload, laws.run.plan.codec_up, layout.delta, layout.sums
    )
    base, _ = laws.exchanges.get(sent.exchange, ("", 0.0))
    if laws.known.get(base) != pending.round - 1:
        raise BrokenLawError("equal", f"{memory.device} makes an update from an unknown model")
    before = next((one for one in reversed(made) if one.kept), None)
    for variant in memory.tried.get((run, pending.round - 1), ()):
        one = _make(laws, memory.device, sent.exchange, variant, before)
        if one.sha256 == pending.sha256:
            made.append(one)
            laws.made[memory.device, one.sha256] = one
            return
    raise BrokenLawError(
        "residual",
        f"{memory.device}'s update for round {pending.round} is not its training result plus the "
        "residual of its last kept update",
    )


def _make(laws: Laws, device: str, exchange: str, variant: str, before: Made | None) -> Made:
    run, residual = laws.run, {} if before is None else before.left
    base, _ = laws.exchanges[exchange]
    update = answer_of(laws.schedule, laws.received(base), device, variant)
    number = laws.known[base] + 1
    layout = laws.schedule.layout(number - 1)
    meant = {name: term + residual.get(name, 0) for name, term in update.delta.items()}
    contribution = Contribution(
        run=run.id,
        round=number,
        device=device,
        exchange=exchange,
        update=Update("sum", update.weight, meant, update.sums),
    )
    body = wire.pack_contribution(contribution, run.plan.codec_up)
    received = wire.unpack_contribution(body, run.plan.codec_up, layout.delta, layout.sums).update
    left = {name: term - received.delta[name] for name, term in meant.items()}
    return Made(
        round=number,
        base=base,
        sha256=hashlib.sha256(body).hexdigest(),
        update=received,
        left=left if any(term.any() for term in left.values()) else {},
    )


def _same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(
        one[name].tobytes() == other[name].tobytes() for name in one
    )
