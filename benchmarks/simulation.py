"""The cost of a simulated round and of an epoch, compared with Flower and with the reference.

- round: one FedCLIP round of --devices virtual devices with 100 cached features of width 512 each,
  one local epoch, the default codecs and no evaluation, in a new process each time. The clock runs
  from before the worker processes start until they have ended.
- `--peer flwr`: the same round in Flower's simulation (flwr and ray from pip, in an environment
  that is created in --peer-env, with telemetry off): ServerApp, ClientApp, FedAvg, one client per
  core, no evaluation. Its clients call our `fit` on the same features, and send float32. The clock
  covers run_simulation; creating the environment, and the imports of a client in the first process,
  are not included.
- memory: of all processes together (shared memory is counted once), over --memory-rounds rounds of
  100 devices.
- crowd: the same memory in three rounds with each number of --crowd devices, 10 features
  of width 256 each.
- epoch: one local epoch from the cache (1,000 features, batches of 32), and the reference's, which
  encodes pictures and texts of every batch again: open_clip's ViT-B-32 with random weights, frozen,
  with a trained gate. A few steps of the reference are measured and scaled to the 32 of an epoch.
  Both run on one thread, the reference also on all cores. No picture is decoded.

Contenders alternate, and figures are medians of --repeat runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fedclip_edge.records import ClassTexts, Plan
from fedclip_edge.simulating.comparison import Choices, compare
from fedclip_edge.simulating.pool import TRAIN, Pool
from fedclip_edge.simulating.settings import parse_settings
from fedclip_edge.simulating.splits import parse_split
from fedclip_edge.simulating.workers import Workers

DIM, CLASSES, PICTURES = 512, 7, 100
# Of each device, where the memory of many devices is measured: a feature has 1 kB, and an adapter
# 131,584 parameters, so that what a device keeps does not hide behind its features.
CROWD_DIM, CROWD_PICTURES = 256, 10
EPOCH_PICTURES, BATCH = 1000, 32
ROUND_BAR, EPOCH_BAR, MEMORY_BAR = 7.0, 1000.0, 1.1


def texts(dim: int = DIM) -> ClassTexts:
    units = np.random.default_rng(0).normal(size=(CLASSES, dim))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    names = tuple(f"class {number}" for number in range(CLASSES))
    return ClassTexts(names, units.astype(np.float32), 100.0, "unknown")


def drawn(count: int, seed: int, dim: int = DIM) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    noise = 0.04 * random.standard_normal((count, dim), np.float32)
    return 10 * (texts(dim).vectors[labels] + noise), labels


def pool(devices: int, pictures: int = PICTURES, dim: int = DIM) -> Pool:
    """Training features of each device, and no test features, since Flower's round has no
    evaluation.
    """
    count = devices * pictures
    vectors, labels = drawn(count, 1, dim)
    sides, nowhere = np.full(count, TRAIN, np.uint8), np.zeros(count, np.int64)
    return Pool(texts(dim), "e" * 64, vectors, labels, sides, (), nowhere)


def rounds(its: Pool, devices: int, count: int, workers: int) -> Iterator[int]:
    """The numbers of the rounds as they are finished."""
    choices = Choices(parse_settings("fedclip@vote=off", count), parse_split("iid"), devices)
    with Workers(its, workers) as hosts:
        for step in compare(choices, its, hosts, print):
            yield step.round


def measure_round(devices: int, workers: int) -> float:
    its, began = pool(devices), time.perf_counter()
    assert list(rounds(its, devices, 1, workers)) == [0, 1]
    return time.perf_counter() - began


def measure_round_afresh(devices: int, workers: int) -> float:
    """Measure a round in a new process, which has loaded nothing before."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as fresh:
        return fresh.submit(measure_round, devices, workers).result()


# --- Flower --------------------------------------------------------------------------------------

FLOWER = """
import json, sys, time
import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

path, devices = sys.argv[1], int(sys.argv[2])
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]
app, server = ClientApp(), ServerApp()
closed = []


@app.train()
def train(message, context):
    import torch
    from fedclip_edge.learning import methods, training
    from fedclip_edge.learning.method import LocalTask
    from fedclip_edge.records import ClassTexts, Features, Model, Plan

    training.use_one_thread()
    number = int(context.node_config["partition-id"])
    texts = np.load(path + "/texts.npy")
    vectors = np.load(path + "/vectors.npy", mmap_mode="r")
    labels = np.load(path + "/labels.npy")
    its = slice(100 * number, 100 * (number + 1))
    features = Features(np.array(vectors[its]), labels[its], "e" * 64)
    classes = ClassTexts(tuple(f"class {n}" for n in range(len(texts))), texts, 100.0, "unknown")
    terms = dict(zip(NAMES, message.content["arrays"].to_numpy_ndarrays()))
    none = Features(features.vectors[:0], features.labels[:0], features.encoder_id)
    model, plan = Model("fedclip", 0, terms), Plan("fedclip", rounds=1, vote="off")
    change = methods.fit(LocalTask(plan, model, features, none, classes, number)).delta
    content = RecordDict({
        "arrays": ArrayRecord([terms[name] + change[name] for name in NAMES]),
        "metrics": MetricRecord({"num-examples": 100}),
    })
    return Message(content=content, reply_to=message)


@server.main()
def main(grid, context):
    random = np.random.default_rng(0)
    shapes = [(512, 512), (512,), (512, 512), (512,)]
    initial = [random.uniform(-0.044, 0.044, shape).astype(np.float32) for shape in shapes]
    strategy = FedAvg(
        fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=devices,
        min_available_nodes=devices,
    )
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(initial), num_rounds=1)
    moved = [float(np.abs(a - b).max()) for a, b in zip(result.arrays.to_numpy_ndarrays(), initial)]
    closed.append(min(moved))


began = time.perf_counter()
run_simulation(
    server_app=server, client_app=app, num_supernodes=devices,
    backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
)
took_s = time.perf_counter() - began
assert closed and closed[0] > 0, "no round was closed"
print("\\n" + json.dumps({"seconds": took_s}))
"""


def peer_python(folder: Path) -> Path:
    """A Python with Flower in an environment that also sees the packages of this one."""
    python = folder / "bin" / "python"
    marker = folder / ".ready"
    if not marker.exists():
        print(f"creating an environment for Flower in {folder} (a few minutes)", flush=True)
        venv.create(folder, with_pip=True)
        inside = subprocess.run(
            [python, "-c", "import site; print(site.getsitepackages()[0])"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        ours = [str(Path(np.__file__).parents[1]), str(Path(__file__).resolve().parents[1])]
        (Path(inside) / "shared.pth").write_text("\n".join(ours) + "\n")
        subprocess.run([python, "-m", "pip", "install", "-q", "flwr[simulation]"], check=True)
        marker.touch()
    return python


def measure_flower(its: Pool, devices: int, folder: Path) -> tuple[float, str]:
    python = peer_python(folder)
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory() as place:
        np.save(Path(place) / "vectors.npy", its.vectors)
        np.save(Path(place) / "labels.npy", its.labels)
        np.save(Path(place) / "texts.npy", its.classes.vectors)
        script = Path(place) / "peer.py"
        script.write_text(FLOWER)
        done = subprocess.run(
            [python, script, place, str(devices)],
            capture_output=True,
            text=True,
            env={**os.environ, **quiet, "OMP_NUM_THREADS": "1"},
            check=False,
        )
    if done.returncode:
        sys.exit(f"Flower's simulation failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    seconds = float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])
    versions = (
        "from importlib.metadata import version as v; print('flwr', v('flwr'), 'ray', v('ray'))"
    )
    shown = subprocess.run([python, "-c", versions], capture_output=True, text=True, check=True)
    return seconds, shown.stdout.strip()


# --- memory --------------------------------------------------------------------------------------


def fields_of(pid: str, file: str) -> dict[str, str]:
    """The contents of a file in /proc as names and values; empty if the process has ended."""
    try:
        lines = (Path("/proc") / pid / file).read_text().splitlines()
    except OSError:
        return {}
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


def memory_mb() -> float:
    """Memory of this process and its descendants; shared memory is divided among its users."""
    pids = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    parents = {pid: fields_of(pid, "status").get("PPid", "").strip() for pid in pids}
    ours, more = set(), {str(os.getpid())}
    while more:
        ours |= more
        more = {pid for pid, parent in parents.items() if parent in more} - ours
    shares = [fields_of(pid, "smaps_rollup").get("Pss", "0 kB") for pid in ours]
    return sum(int(share.split()[0]) for share in shares) / 1000


def measure_memory(count: int, workers: int) -> dict[str, float]:
    found = {number: memory_mb() for number in rounds(pool(100), 100, count, workers)}
    warm = max(2, count // 5)  # by then every device has a residual
    first = statistics.median(v for number, v in found.items() if warm <= number < 2 * warm)
    last = statistics.median(v for number, v in found.items() if number > count - warm)
    return {"first_mb": first, "last_mb": last, "growth": last / first, "rounds": count}


def measure_crowd(devices: int, workers: int) -> float:
    """The highest memory after a round of so many devices, in MB."""
    its = pool(devices, CROWD_PICTURES, CROWD_DIM)
    return max(memory_mb() for _ in rounds(its, devices, 3, workers))


# --- one epoch -----------------------------------------------------------------------------------


def measure_epoch(repeat: int, steps: int) -> dict[str, float]:
    import torch

    from fedclip_edge.exporting.torchvision_ops import declare_missing

    declare_missing()
    import open_clip

    from fedclip_edge.learning import local, methods, training
    from fedclip_edge.learning.schedule import Schedule
    from fedclip_edge.records import Features

    classes = texts()
    features = Features(*drawn(EPOCH_PICTURES, 2), "e" * 64)
    plan = Plan("fedclip", rounds=1, vote="off")
    schedule, model = Schedule(plan, classes, DIM), methods.initial(plan, classes, DIM)
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-32").eval()
    clip.requires_grad_(requires_grad=False)
    gate = torch.nn.Sequential(
        torch.nn.Linear(DIM, DIM), torch.nn.Tanh(), torch.nn.Linear(DIM, DIM), torch.nn.Softmax(1)
    )
    adam = torch.optim.Adam(gate.parameters(), 5e-5, (0.9, 0.98), 1e-6, 0.2)
    tokens = open_clip.get_tokenizer("ViT-B-32")(["a picture of a giraffe"] * BATCH)
    pixels = torch.rand(BATCH, 3, 224, 224)
    target = torch.arange(BATCH)

    def reference() -> None:
        """A step of fed_at_clip.py: both towers, then the gate."""
        images = clip.encode_image(pixels).float()
        words = clip.encode_text(tokens).float()
        adapted = torch.nn.functional.normalize(gate(images) * images, dim=1)
        logits = 100 * adapted @ torch.nn.functional.normalize(words, dim=1).T
        loss = torch.nn.functional.cross_entropy(logits, target)
        loss = (loss + torch.nn.functional.cross_entropy(logits.T, target)) / 2
        adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()

    def ours() -> None:
        local.answer(schedule, model, _Sides(features), "device")

    cores = len(os.sched_getaffinity(0))
    found: dict[str, list[float]] = {"ours": [], "one": [], "all": []}
    training.use_one_thread()
    ours()
    reference()
    for _ in range(repeat):
        training.use_one_thread()
        found["ours"] += [_clock(ours) for _ in range(3)]
        found["one"] += [_clock(reference) for _ in range(steps)]
        torch.set_num_threads(cores)
        found["all"] += [_clock(reference) for _ in range(steps)]
    training.use_one_thread()
    per_epoch = -(-EPOCH_PICTURES // BATCH)
    ours_s = statistics.median(found["ours"])
    one_s, all_s = (per_epoch * statistics.median(found[name]) for name in ("one", "all"))
    return {
        "ours_s": ours_s,
        "reference_one_thread_s": one_s,
        "reference_all_cores_s": all_s,
        "times_one_thread": one_s / ours_s,
        "times_all_cores": all_s / ours_s,
    }


class _Sides:
    def __init__(self, train: Any) -> None:
        self.train = train
        self.validation = type(train)(train.vectors[:0], train.labels[:0], train.encoder_id)


def _clock(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--peer", choices=["flwr"])
    parser.add_argument(
        "--peer-env", type=Path, default=Path(tempfile.gettempdir()) / "fedclip-edge-flwr"
    )
    parser.add_argument("--memory-rounds", type=int, default=50)
    parser.add_argument(
        "--steps",
        type=int,
        default=2,
        help="number of measured steps of the reference in each repetition",
    )
    parser.add_argument(
        "--crowd", type=int, nargs="*", default=[100, 1000], help="numbers of devices"
    )
    parser.add_argument("--only", choices=["round", "memory", "crowd", "epoch"])
    parser.add_argument(
        "--check", action="store_true", help="exit with code 1 if a figure misses its limit"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wanted = [options.only] if options.only else ["round", "memory", "crowd", "epoch"]
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {options.workers} workers, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    figures: dict[str, Any] = {}
    missed = []
    if "round" in wanted:
        its = pool(options.devices)
        ours, theirs, versions = [], [], ""
        for _ in range(options.repeat):
            ours.append(measure_round_afresh(options.devices, options.workers))
            if options.peer:
                seconds, versions = measure_flower(its, options.devices, options.peer_env)
                theirs.append(seconds)
        figures["round_s"] = statistics.median(ours)
        shown = ", ".join(f"{seconds:.1f}" for seconds in ours)
        print(f"one round of {options.devices} devices: {figures['round_s']:.1f} s ({shown})")
        if theirs:
            times = [b / a for a, b in zip(ours, theirs, strict=True)]
            figures |= {"peer_s": statistics.median(theirs), "times": statistics.median(times)}
            shown = ", ".join(f"{seconds:.1f}" for seconds in theirs)
            print(f"the same round in {versions}: {figures['peer_s']:.1f} s ({shown})")
            print(f"times faster: {figures['times']:.1f} (at least {ROUND_BAR:g})")
            if figures["times"] < ROUND_BAR:
                missed.append("round")
    if "memory" in wanted:
        memory = figures["memory"] = measure_memory(options.memory_rounds, options.workers)
        print(
            f"memory over {options.memory_rounds} rounds of 100 devices: {memory['first_mb']:.0f} MB "
            f"-> {memory['last_mb']:.0f} MB ({memory['growth']:.3f} times, at most {MEMORY_BAR:g})"
        )
        if memory["growth"] > MEMORY_BAR:
            missed.append("memory")
    if "crowd" in wanted:
        figures["crowd_mb"] = {}
        for devices in options.crowd:
            found = figures["crowd_mb"][devices] = measure_crowd(devices, options.workers)
            print(f"memory with {devices} devices: {found:.0f} MB", flush=True)
    if "epoch" in wanted:
        epoch = figures["epoch"] = measure_epoch(options.repeat, options.steps)
        print(
            f"one epoch of {EPOCH_PICTURES}: {1e3 * epoch['ours_s']:.0f} ms from the cache; the "
            f"reference's, extrapolated, {epoch['reference_one_thread_s']:.0f} s on one thread, "
            f"{epoch['reference_all_cores_s']:.0f} s on all cores\n"
            f"times cheaper: {epoch['times_one_thread']:.0f} on one thread each (at least "
            f"{EPOCH_BAR:g}), {epoch['times_all_cores']:.0f} against all cores"
        )
        if epoch["times_one_thread"] < EPOCH_BAR:
            missed.append("epoch")
    if options.json:
        print(json.dumps(figures))
    if options.check and missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
