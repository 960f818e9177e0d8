"""The trainer process of a device: the same results as in one process, and its end."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import system
import torch

from fedclip_edge.agent.encoding import Encoding
from fedclip_edge.agent.features import CACHE, Sides, prepare_pictures
from fedclip_edge.agent.trainer_process import TrainerProcess
from fedclip_edge.agent.training import CachedTraining
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.errors import ConfigError, WorkerError
from fedclip_edge.learning import methods
from fedclip_edge.processes.children import Children
from fedclip_edge.records import Measured, Model, Plan, Update
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.datasets import Picture

FLOOR = 1


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Device:
    """A device with pictures whose features are cached."""

    folder: Path
    bundle: Bundle
    children: Children

    def __post_init__(self) -> None:
        system.write_pictures(self.folder / "pictures", self.bundle.classes.names, 12, seed=1)
        data = DataConfig(self.folder / "pictures")
        state = self.folder / "state"
        state.mkdir()
        self.config = AgentConfig("cam-a", "lab", data, state, bundle=self.bundle.folder)
        encoding = Encoding(self.bundle, self.config.encoder, state / CACHE)
        self.sides = prepare_pictures(self.config, self.bundle, encoding.encode, None).sides
        self.process = TrainerProcess(self.children, self.config, self.bundle, self.sides)

    def here(self) -> CachedTraining:
        return CachedTraining(self.config, self.bundle, self.sides)

    def initial(self, plan: Plan) -> Model:
        return methods.initial(plan, self.bundle.classes, self.bundle.manifest.dim)


@pytest.fixture
def device(tmp_path: Path, random_bundle: Bundle) -> Iterator[Device]:
    with Children() as children:
        yield Device(tmp_path, random_bundle, children)


def plan_of(method: str) -> Plan:
    return methods.with_defaults(Plan(method, vote="off", local_baseline=method == "ridge"))


def content(update: Update) -> tuple[int, dict[str, bytes], dict[str, bytes]]:
    delta, sums = ({n: a.tobytes() for n, a in its.items()} for its in (update.delta, update.sums))
    return update.weight, delta, sums


@pytest.mark.parametrize("method", ["fedclip", "ridge", "tip-adapter", "zeroshot"])
def test_its_results_are_those_of_one_process_byte_for_byte(device: Device, method: str) -> None:
    plan = plan_of(method)
    model, here = device.initial(plan), device.here()
    if method != "zeroshot":
        update, seconds = device.process.fit(model, plan, FLOOR)
        assert content(update) == content(here.fit(model, plan, FLOOR)[0])
        assert seconds > 0
    last = replace(model, round=plan.rounds)
    files = ["predictions.csv", *(["personal.safetensors"] * (method == "tip-adapter"))]
    measured: list[Measured] = []
    written: list[list[bytes]] = []
    for work in (device.process, here):
        measured.append(work.evaluate(last, plan, True))
        written.append([(device.config.state_dir / name).read_bytes() for name in files])
        for name in files:
            (device.config.state_dir / name).unlink()
    assert measured[0] == measured[1]
    assert written[0] == written[1]


def test_it_loads_torch_only_to_train_by_gradients_and_the_parent_never_does(
    device: Device,
) -> None:
    plan = plan_of("ridge")
    device.process.fit(device.initial(plan), plan, FLOOR)
    assert "libtorch" not in maps(device)
    assert "onnxruntime" not in maps(device)
    plan = plan_of("fedclip")
    device.process.fit(device.initial(plan), plan, FLOOR)
    assert "libtorch" in maps(device)


def maps(device: Device) -> str:
    pid = device.process.worker.pid
    assert pid is not None
    return system.of_process(pid, "maps")


def test_it_ends_when_it_is_idle_and_the_next_round_is_the_same(device: Device) -> None:
    plan = plan_of("fedclip")
    first, _ = device.process.fit(device.initial(plan), plan, FLOOR)
    device.process.worker.rest(time.monotonic() + 3600)
    assert not device.process.worker.is_running
    again, _ = device.process.fit(device.initial(plan), plan, FLOOR)
    assert content(first) == content(again)


@pytest.mark.parametrize("is_running", [True, False])
def test_it_works_on_the_pictures_that_it_was_told_last(device: Device, is_running: bool) -> None:
    plan = plan_of("ridge")
    model = device.initial(plan)
    if is_running:
        device.process.fit(model, plan, FLOOR)
    fewer = Sides(device.sides.train[:5], device.sides.validation, device.sides.test)
    device.process.use(fewer)
    update, _ = device.process.fit(model, plan, FLOOR)
    assert update.sums["train.counts"].sum() == 5
    device.sides = fewer
    assert content(update) == content(device.here().fit(model, plan, FLOOR)[0])


def test_features_that_left_the_cache_are_computed_again(device: Device) -> None:
    plan = plan_of("ridge")
    model = device.initial(plan)
    expected, _ = device.here().fit(model, plan, FLOOR)
    (device.config.state_dir / CACHE).unlink()
    update, _ = device.process.fit(model, plan, FLOOR)
    assert update.sums["train.counts"].tolist() == expected.sums["train.counts"].tolist()


def test_errors_of_the_work_are_the_same_here(device: Device) -> None:
    plan = Plan("fedclip", options={"lrr": 1.0}, rounds=1)
    model = device.initial(plan_of("fedclip"))
    with pytest.raises(ConfigError) as here:
        device.here().fit(model, plan, FLOOR)
    with pytest.raises(ConfigError) as there:
        device.process.fit(model, plan, FLOOR)
    assert str(there.value) == str(here.value)


def test_a_killed_process_does_not_change_the_result(device: Device, tmp_path: Path) -> None:
    plan = plan_of("fedclip")
    model = device.initial(plan)
    expected = content(device.here().fit(model, plan, FLOOR)[0])
    device.process.fit(model, plan, FLOOR)
    killed: list[int] = []

    def kill() -> None:
        if not killed:
            killed.append(device.process.worker.pid or 0)
            os.kill(killed[0], signal.SIGKILL)

    device.process.worker.meanwhile = kill
    assert content(device.process.fit(model, plan, FLOOR)[0]) == expected
    assert killed


class Hungry(CachedTraining):
    """A device without memory for its training."""

    def fit(self, model: Model, plan: Plan, floor: int) -> tuple[Update, float]:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return super().fit(model, plan, floor)


class FullDisk(CachedTraining):
    """A device that can write nothing."""

    def evaluate(self, model: Model, plan: Plan, final: bool) -> Measured:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        return super().evaluate(model, plan, final)


def becomes(device: Device, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the device's process work on an object of another class."""
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, *sys.path]))
    device.process.worker.target = f"test_trainer_process:{kind.__name__}"


def test_one_without_enough_memory_is_an_error(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit on address space stands in for a small machine. It has no room for torch."""
    becomes(device, Hungry, monkeypatch)
    plan = plan_of("fedclip")
    with pytest.raises(
        WorkerError, match=r"the trainer process ran out of memory .*, twice in a r"
    ):
        device.process.fit(device.initial(plan), plan, FLOOR)


def test_a_full_disk_is_the_error_that_it_would_be_here(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    becomes(device, FullDisk, monkeypatch)
    plan = plan_of("ridge")
    with pytest.raises(OSError, match="File too large"):
        device.process.evaluate(replace(device.initial(plan), round=1), plan, True)


def test_pictures_travel_to_the_process_as_they_are() -> None:
    """Their names need not be text."""
    import pickle

    odd = Picture(Path(os.fsdecode(b"caf\xe9.png")), 0, "0" * 64)
    assert pickle.loads(pickle.dumps(odd)) == odd  # noqa: S301
