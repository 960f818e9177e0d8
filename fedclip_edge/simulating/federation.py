"""The loop over the rounds of one simulated run; ARCHITECTURE.md describes a round.

Laws:
- with the same devices, a run gives the same model, byte for byte, as a real coordinator and real
  agents;
- the norm of an update is bounded as a real coordinator bounds it (learning/norm_bound.py);
- memory does not grow with the number of rounds;
- the figures depend on the plan, the devices and the features only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedclip_edge.learning.evaluation import Evaluation
from fedclip_edge.learning.norm_bound import NormBound
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.learning.strategy import State
from fedclip_edge.learning.unknown import Separation
from fedclip_edge.protocol import wire
from fedclip_edge.records import Model
from fedclip_edge.simulating.host import Announcement, Compared, Task
from fedclip_edge.simulating.splits import Device, Fleet
from fedclip_edge.simulating.workers import Hosts

POOLED = "pooled"
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Round:
    """The results after `round` closed rounds, when every device has evaluated the model.

    Byte counts are those of the payloads that each device has sent and received so far.
    """

    round: int
    model: Model | None  # the coordinator's model, float32; None if every device has its own
    figures: Mapping[tuple[str, str], Evaluation]  # by (device, view)
    zero_shot: Mapping[tuple[str, str], Evaluation]
    up_bytes: Mapping[str, int]
    down_bytes: Mapping[str, int]
    # By device, after the last round (host.py).
    separation: Mapping[str, Separation] = field(default_factory=dict)
    zero_shot_separation: Mapping[str, Separation] = field(default_factory=dict)
    # Only in the last round, for the devices that have a model of their own.
    own_pictures: Mapping[tuple[str, str], Compared] = field(default_factory=dict)
    other_pictures: Mapping[tuple[str, str], Compared] = field(default_factory=dict)


def federate(task: Task, fleet: Fleet, hosts: Hosts) -> Iterator[Round]:
    """Run all rounds and yield their results, from round 0 (the initial model) to the last.

    Raises ConfigError if training diverges or an update exceeds the plan's bounds, DataError for
    features that do not fit the classes, and RunError if a worker process ended.
    """
    plan, devices = task.plan, _participants(task, fleet)
    hosts.start_run(task, devices)
    schedule = Schedule(plan, task.views[0].classes, task.dim)
    count = len(schedule.steps)
    model = schedule.initial()
    server: State = {}
    bound = _first_bound(task, schedule, 0)
    zero_shot: Mapping[tuple[str, str], Evaluation] = {}
    up = dict.fromkeys((device.name for device in devices), 0)
    down = dict(up)
    for closed in range(count + 1):
        is_last = closed == count
        announced = _announce(task, model, closed, bound.value, is_last=is_last)
        answers = hosts.run_round(announced)
        if task.line == "federated":
            for name in down:
                down[name] += len(announced.payload)
        figures = {key: one for answer in answers for key, one in answer.figures.items()}
        zero_shot = zero_shot or {k: one for a in answers for k, one in a.zero_shot.items()}
        shown = None if task.line == "local" else model
        yield Round(
            closed,
            shown,
            figures,
            zero_shot,
            dict(up),
            dict(down),
            {key: one for answer in answers for key, one in answer.separation.items()},
            {key: one for answer in answers for key, one in answer.zero_shot_separation.items()},
            {key: one for answer in answers for key, one in answer.own_pictures.items()},
            {key: one for answer in answers for key, one in answer.other_pictures.items()},
        )
        if is_last:
            return
        total = schedule.total(closed, bound.value)
        for answer in answers:
            total.merge(answer.total)
            if task.line == "federated":
                for name, size in answer.up_bytes.items():
                    up[name] += size
        if task.line != "local":
            model, server = schedule.close(model, total, server)
            if closed + 1 in schedule.numbers(closed + 1):
                norms = [norm for answer in answers for norm in answer.norms.values()]
                bound = bound.after(norms)
            else:
                bound = _first_bound(task, schedule, closed + 1)


def _first_bound(task: Task, schedule: Schedule, closed: int) -> NormBound:
    """Return a method's first bound; only a fleet that shares a model needs a narrow one."""
    plan = task.plan
    if task.line != "federated":
        return NormBound(plan.max_norm, plan.max_norm, plan.max_norm)
    return schedule.bound(closed)


def _announce(
    task: Task, model: Model, closed: int, max_norm: float, *, is_last: bool
) -> Announcement:
    if task.line == "local":
        return Announcement(b"", "", closed, is_last, max_norm)
    payload = wire.pack_model(model, task.plan.codec_down)
    return Announcement(payload, hashlib.sha256(payload).hexdigest(), closed, is_last, max_norm)


def _participants(task: Task, fleet: Fleet) -> Sequence[Device]:
    """List the devices of a run; in a pooled run an additional one trains on all pictures."""
    devices = list(fleet.devices)
    if task.line == "pooled":
        train, validation = (
            np.concatenate([getattr(device, side) for device in devices])
            for side in ("train", "validation")
        )
        devices = [
            Device(POOLED, np.sort(train), np.sort(validation), _NONE),
            *(replace(device, train=_NONE, validation=_NONE) for device in devices),
        ]
    if fleet.held_out is not None and task.line != "local":  # a local run has no shared model
        devices.append(fleet.held_out)
    return devices
