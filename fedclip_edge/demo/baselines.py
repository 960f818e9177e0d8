"""Baselines of a demo: FedCLIP as published, and each device alone, on the fleet's own features.

They are trained after the federation, from the features in the devices' caches, with the same
pictures on each side and the same seed. The simulation does it: with the same devices it gives the
same model, byte for byte, as a real fleet (simulating/federation.py).

Law: nothing is chosen on test pictures.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fedclip_edge.agent.encoding import Encoding
from fedclip_edge.agent.features import CACHE, prepare_pictures, read_features
from fedclip_edge.config.agent import AgentConfig, load_agent
from fedclip_edge.demo.stage import Stage
from fedclip_edge.learning.run_steps import exchanges
from fedclip_edge.processes.cores import usable_cores
from fedclip_edge.records import Features, Plan
from fedclip_edge.simulating.federation import Round, federate
from fedclip_edge.simulating.host import Task, View
from fedclip_edge.simulating.pool import TEST, TRAIN, VALIDATION, Pool
from fedclip_edge.simulating.settings import Line
from fedclip_edge.simulating.splits import Device, Fleet
from fedclip_edge.simulating.workers import Workers
from fedclip_edge.vision.bundle import Bundle, read_bundle

_MIN_PER_CLASS = AgentConfig.min_per_class  # a demo's devices have the default settings


@dataclass(frozen=True)
class Baselines:
    """Accuracies on test pictures, as fractions by device id."""

    fedclip: Mapping[str, tuple[float, ...]]  # after 0, 1, ... rounds; with the held-out device
    alone: Mapping[str, float]  # of a device's own model on its own pictures
    alone_held_out: Mapping[str, float]  # of a device's own model on the held-out device's pictures


def train(stage: Stage, tell: Callable[[int, int], None]) -> Baselines:
    """Train FedCLIP as published on the demo's devices, and the demo's method on each one alone.

    `tell` is called with two counts of rounds: those that are done, and all. The federation must
    have run, so that no picture is encoded here. Raises DataError, DiskError and BundleError if the
    pictures, the caches or the bundle cannot be read, ConfigError if training diverges, and
    RunError if a worker process ends.
    """
    bundle = read_bundle(stage.bundle)
    pool, fleet = _fleet(stage, bundle)
    settings, classes = stage.settings, bundle.classes
    view = View("", classes, np.arange(len(classes.names)))
    total = sum(exchanges(plan) + 1 for plan in (settings.published, settings.plan))
    done = itertools.count(1)
    fedclip: dict[str, list[float]] = {}
    with Workers(pool, min(usable_cores(), len(fleet.devices))) as hosts:

        def rounds_of(plan: Plan, line: Line) -> Iterator[Round]:
            task = Task("demo", plan, line, (view,), pool.encoder_id, pool.dim, _MIN_PER_CLASS)
            for found in federate(task, fleet, hosts):
                yield found
                tell(next(done), total)

        for found in rounds_of(settings.published, "federated"):
            for (device, _), one in found.figures.items():
                fedclip.setdefault(device, []).append(one.top1)
        *_, last = rounds_of(settings.plan, "local")
    return Baselines(
        fedclip={device: tuple(by_round) for device, by_round in fedclip.items()},
        alone={device: one.top1 for (device, _), one in last.figures.items()},
        alone_held_out={device: one.own.top1 for (device, _), one in last.other_pictures.items()},
    )


def _fleet(stage: Stage, bundle: Bundle) -> tuple[Pool, Fleet]:
    """Read the features of all devices, each with the sides that it had in the federation."""
    parts: list[Features] = []
    every = (*stage.devices, stage.held_out)
    for one in every:
        config = load_agent(one.config)
        encoding = Encoding(bundle, config.encoder, config.state_dir / CACHE)
        pictures = prepare_pictures(config, bundle, encoding.encode, None)
        its = read_features(config, bundle, pictures.sides)
        parts += [its.train, its.validation, its.test]
    counts = [len(part) for part in parts]
    rows = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    devices = [
        Device(one.id, rows[3 * i], rows[3 * i + 1], rows[3 * i + 2]) for i, one in enumerate(every)
    ]
    *training, held_out = devices
    pool = Pool(
        classes=bundle.classes,
        encoder_id=bundle.manifest.encoder_id,
        vectors=np.concatenate([part.vectors for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        sides=np.repeat(np.array([TRAIN, VALIDATION, TEST] * len(every), np.uint8), counts),
        domains=(),
        domain_of=np.zeros(sum(counts), np.int64),
    )
    # A device alone is also tested on the held-out pictures.
    tested = tuple(replace(device, others=held_out.test) for device in training)
    return pool, Fleet(tested, held_out)
