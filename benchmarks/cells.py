"""Runs of one method on one fleet, compared with zero-shot CLIP picture by picture.

never_worse.py and learning_curves.py use this module. A cell is a set of pictures, a split over
devices, a number of devices, shots, a floor, a seed and a method. Its run is that of `fedclip-edge
simulate`: the same split into training, validation and test pictures, the same fleet, the agent's
and the coordinator's functions.

Shots are the labelled pictures of each class in the whole fleet, for training and validation
together. The smaller subsets of a seed are parts of the larger ones. Test pictures are never left
out.

The floor is `min_per_class`, both of every device and of the plan.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from central import centralised

from fedclip_edge import log
from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods, training
from fedclip_edge.learning.evaluation import evaluate, goodness
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.processes.blas import limit_blas_threads
from fedclip_edge.protocol import wire
from fedclip_edge.records import F32, Model, Plan
from fedclip_edge.simulating import pictures
from fedclip_edge.simulating.federation import federate
from fedclip_edge.simulating.host import Task, View
from fedclip_edge.simulating.pool import TEST, TRAIN, Pool, read_features
from fedclip_edge.simulating.settings import parse_settings
from fedclip_edge.simulating.splits import Fleet, deal, parse_split
from fedclip_edge.simulating.workers import Here
from fedclip_edge.vision.bundle import read_bundle
from fedclip_edge.vision.shared_cache import SharedCache

ROOT = Path(__file__).parents[1]
CENTRAL = "centralised"  # a method of this benchmark: logistic regression on all pictures together
ALL = 0  # shots: every picture of the set
_VALIDATION = 0.2  # of the pictures that are not for testing; the default of `simulate`
DEVICES, HELD_OUT = "devices", "held-out domain"


@dataclass(frozen=True)
class Cell:
    """One run."""

    source: str  # name of the set
    split: str  # as after --split
    devices: int
    shots: int
    seed: int
    floor: int
    method: str  # as after --methods
    held_out: str = ""  # a domain

    @property
    def fleet(self) -> Cell:
        """The part that decides which device has which pictures."""
        return replace(self, floor=0, method="")


@dataclass(frozen=True)
class Seen:
    """A final model and zero-shot CLIP on the same test pictures."""

    where: str  # on the test pictures of the devices, or on the held-out domain
    pictures: int
    right: int  # pictures that the model names correctly
    won: int  # pictures that only the model names correctly
    lost: int  # pictures that only zero-shot names correctly
    ece: float
    zero_ece: float
    nll: float  # mean negative log-likelihood of the labels
    zero_nll: float

    @property
    def gain(self) -> float:
        """Accuracy above that of zero-shot, as a fraction."""
        return (self.won - self.lost) / self.pictures

    @property
    def error(self) -> float:
        """Standard error of the gain: only pictures that one of the two misses contribute."""
        return math.sqrt(self.won + self.lost) / self.pictures

    @property
    def top1(self) -> float:
        return self.right / self.pictures

    @property
    def zero_top1(self) -> float:
        return self.top1 - self.gain


Found = Mapping[Cell, Sequence[Seen]]


def read_array_file(path: Path) -> Pool:
    """The pool of an .npz file."""
    return read_features(path, _VALIDATION)


def encoded(folder: Path, bundle: Path, cache: Path) -> Pool:
    """The pool of a folder of pictures; features are encoded once and kept in `cache`."""
    with SharedCache(cache, print) as known:
        pool, _ = pictures.read_pictures(
            folder, read_bundle(bundle), EncoderConfig(threads=1), known, None
        )
    return pool


def most_shots(pool: Pool) -> int:
    """The largest number of shots that every class of the pool can fill."""
    labels = pool.labels[pool.sides != TEST]
    return int(np.bincount(labels, minlength=len(pool.classes.names)).min())


def few(pool: Pool, shots: int, seed: int) -> Pool:
    """The pool with this number of pictures of each class for training and validation."""
    if shots == ALL:
        return pool
    random = np.random.default_rng([seed, 0x540])
    rows = np.flatnonzero(pool.sides != TEST)
    kept = [
        random.permutation(rows[pool.labels[rows] == label])[:shots]
        for label in range(len(pool.classes.names))
    ]
    chosen = np.sort(np.concatenate([*kept, pool.rows(TEST)]))
    return replace(
        pool,
        vectors=pool.vectors[chosen],
        labels=pool.labels[chosen],
        sides=pool.sides[chosen],
        domain_of=pool.domain_of[chosen],
    )


def fills(pool: Pool, cell: Cell) -> bool:
    """True if the classes have enough pictures for the shots, and the devices one each."""
    if cell.shots > most_shots(pool):
        return False
    return len(few(pool, cell.shots, cell.seed).rows(TRAIN)) >= cell.devices


def fleet_of(pool: Pool, cell: Cell) -> Fleet:
    """The fleet of a cell; every device has a training picture or more."""
    return deal(
        pool,
        parse_split(cell.split),
        devices=cell.devices,
        seed=cell.seed,
        held_out=cell.held_out,
        least=1,
    )


def measure(cell: Cell, pool: Pool, fleet: Fleet) -> list[Seen]:
    """Run one cell; `pool` has the pictures of its shots."""
    rows = {DEVICES: np.sort(np.concatenate([device.test for device in fleet.devices]))}
    if fleet.held_out is not None:
        rows[HELD_OUT] = fleet.held_out.test
    if cell.method == CENTRAL:
        answers = {
            where: centralised(pool, fleet.devices, pool.vectors[its])
            for where, its in rows.items()
        }
    else:
        model = final_model(cell, pool, fleet)
        answers = {
            where: methods.predict(model, pool.vectors[its], pool.classes)
            for where, its in rows.items()
        }
    return [
        compared(
            where,
            answers[where],
            methods.predict(zeroshot.MODEL, pool.vectors[its], pool.classes),
            pool.labels[its],
        )
        for where, its in rows.items()
    ]


def compared(where: str, mine: F32, zero: F32, labels: np.ndarray) -> Seen:
    """Compare logits (N, C) of two models on the same pictures."""
    right, zero_right = mine.argmax(axis=1) == labels, zero.argmax(axis=1) == labels
    return Seen(
        where,
        len(labels),
        int(right.sum()),
        int((right & ~zero_right).sum()),
        int((zero_right & ~right).sum()),
        evaluate(mine, labels).ece,
        evaluate(zero, labels).ece,
        -goodness(mine, labels)[1],
        -goodness(zero, labels)[1],
    )


def plan_of(cell: Cell) -> Plan:
    """The plan of a cell; raises ConfigError if the fleet does not train the method together."""
    (setting,) = parse_settings(cell.method, None)
    if setting.line != "federated":
        raise ConfigError(f"{cell.method}: only a model of the whole fleet can be compared")
    plan = replace(setting.plan, seed=cell.seed)
    if hasattr(methods.get(plan.method).check_options(plan.options), "min_per_class"):
        plan = replace(plan, options={**plan.options, "min_per_class": cell.floor})
    return plan


def final_model(cell: Cell, pool: Pool, fleet: Fleet) -> Model:
    """Simulate the run; return its last model as the devices receive it."""
    plan = plan_of(cell)
    classes = pool.classes
    view = View("", classes, np.arange(len(classes.names)))
    task = Task("run-1", plan, "federated", (view,), pool.encoder_id, pool.dim, cell.floor)
    *_, last = federate(task, fleet, Here(pool))
    assert last.model is not None
    shapes = {name: term.shape for name, term in last.model.parameters.items()}
    payload = wire.pack_model(last.model, plan.codec_down)
    model = wire.unpack_model(payload, plan.codec_down, shapes)
    for device in fleet.devices:  # the run's own figures are those of this model
        if len(device.test):
            logits = methods.predict(model, pool.vectors[device.test], classes)
            reported = last.figures[device.name, ""].top1
            assert evaluate(logits, pool.labels[device.test]).top1 == reported, device.name
    return model


# --- many cells ----------------------------------------------------------------------------------

_pools: dict[str, Pool] = {}  # of this worker process


def _start(pools: Mapping[str, Pool]) -> None:
    log.mute()
    training.use_one_thread()
    _pools.update(pools)


def _run(cells: Sequence[Cell]) -> list[tuple[Cell, list[Seen]]]:
    """Run cells that have the same fleet."""
    first = cells[0]
    pool = few(_pools[first.source], first.shots, first.seed)
    fleet = fleet_of(pool, first)
    return [(cell, measure(cell, pool, fleet)) for cell in cells]


def run(
    cells: Iterable[Cell], pools: Mapping[str, Pool], jobs: int
) -> Iterator[list[tuple[Cell, list[Seen]]]]:
    """Run the cells in `jobs` processes; yield the results of one fleet after the other."""
    groups: dict[Cell, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.fleet].append(cell)
    limit_blas_threads()
    workers = ProcessPoolExecutor(
        jobs, mp_context=get_context("forkserver"), initializer=_start, initargs=(pools,)
    )
    try:
        for done in as_completed([workers.submit(_run, group) for group in groups.values()]):
            yield done.result()
    finally:
        workers.shutdown(cancel_futures=True)


@functools.cache
def code_version() -> str:
    """A hash of the code that decides a result, as it was at the first call."""
    files = sorted((ROOT / "fedclip_edge").rglob("*.py"))
    digest = hashlib.sha256()
    for path in [*files, Path(__file__), Path(__file__).with_name("central.py")]:
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def read_results(path: Path | None, code: str) -> dict[Cell, list[Seen]]:
    """The results of this code in a file; a line that was not written completely is left out."""
    found: dict[Cell, list[Seen]] = {}
    if path is None or not path.exists():
        return found
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry["code"] == code:
            found[Cell(**entry["cell"])] = [Seen(**seen) for seen in entry["seen"]]
    return found


def result_line(cell: Cell, seen: Sequence[Seen], code: str) -> str:
    entry = {"code": code, "cell": asdict(cell), "seen": [asdict(one) for one in seen]}
    return json.dumps(entry) + "\n"
