"""A simulation on a Ray cluster of two nodes of this machine.

`make test` leaves this file out. Run it with `make test-cluster`; Ray must be installed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import system
from brokers import free_port
from simulated import write_npz
from system import wait_until

RAY = Path(sys.executable).with_name("ray")
START_S, LIFE_S = 180.0, 1200.0

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not RAY.exists(), reason="needs Ray: pip install 'fedclip-edge[cluster]'"),
]


class Nodes:
    """The nodes of a cluster, each with its own processes."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        # Ray's sockets are in this folder, and the path of a socket has at most 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
        self._stack = stack
        self._logs = 0
        port = free_port()
        self.head = self.start(
            "--head",
            f"--port={port}",
            f"--temp-dir={self._folder}",
            "--include-dashboard=false",
            "--node-ip-address=127.0.0.1",
        )
        self.address = f"127.0.0.1:{port}"

    def join(self, **environment: str) -> subprocess.Popen[bytes]:
        return self.start(f"--address={self.address}", "--node-ip-address=127.0.0.1", **environment)

    def start(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        for _ in range(3):  # Ray gives up after 30 s, which a busy machine may need
            self._logs += 1
            log = self._folder / f"node-{self._logs}.log"
            process = self._try_to_start(log, options, environment)
            if process.poll() is None:
                return process
        raise AssertionError(log.read_text())

    def _try_to_start(
        self, log: Path, options: Sequence[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        common = ("--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats")
        ports = ("--min-worker-port=0", "--max-worker-port=0")
        with log.open("wb") as file:
            process = self._stack.enter_context(
                system.running(
                    [RAY, "start", "--block", *common, *ports, *options],
                    timeout_s=LIFE_S,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment},
                )
            )
        self._stack.callback(end, process)
        wait_until(
            partial(_has_begun, process, log),
            "a node of Ray",
            START_S,
        )
        return process


def _has_begun(process: subprocess.Popen[bytes], log: Path) -> bool:
    return process.poll() is not None or "Ray runtime started" in log.read_text()


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a node and all its processes."""
    for pid in (process.pid, *system.descendants(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with contextlib.ExitStack() as stack:
        found = Nodes(stack)
        found.join()
        yield found


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("features")
    return write_npz(folder / "features.npz")


def words(features: Path, out: Path, methods: str, *more: str) -> tuple[str | Path, ...]:
    split = ("--split", "iid", "--devices", "6")
    return ("simulate", "--features", features, "--methods", methods, "--out", out, *split, *more)


def endless(features: Path, out: Path, nodes: Nodes) -> tuple[str | Path, ...]:
    return words(features, out, "zeroshot,fedclip", "--rounds", "100000", "--ray", nodes.address)


def wait_for_a_round(out: Path) -> None:
    written = out / "results.csv"
    wait_until(
        lambda: written.exists() and "\nfedclip," in written.read_text(), "a trained round", START_S
    )


def test_two_nodes_give_the_bytes_of_one_machine(
    nodes: Nodes, features: Path, tmp_path: Path
) -> None:
    methods = "fedclip,fedclip:local,fedclip:pooled,gda,linear@strategy=median"
    here, there = tmp_path / "here", tmp_path / "there"
    alone = system.run(*words(features, here, methods, "--rounds", "3"), timeout_s=START_S)
    assert alone.returncode == 0, alone.stderr
    shared = system.run(
        *words(features, there, methods, "--rounds", "3", "--workers", "2"),
        "--ray",
        nodes.address,
        timeout_s=START_S,
    )
    assert shared.returncode == 0, shared.stderr
    for name in ("results.csv", "summary.json"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    assert alone.stdout.partition("report:")[0] == shared.stdout.partition("report:")[0]


def test_an_interrupt_ends_the_workers_and_keeps_the_results(
    nodes: Nodes, features: Path, tmp_path: Path
) -> None:
    with system.started(
        *endless(features, tmp_path, nodes), stderr=subprocess.PIPE, timeout_s=2 * START_S
    ) as running:
        wait_for_a_round(tmp_path)
        assert actors() == 2
        running.send_signal(signal.SIGINT)
        printed, errors = running.communicate(timeout=START_S)
    assert running.returncode == 130, errors
    assert errors.strip().endswith("interrupted")
    assert "Traceback" not in errors
    assert "\nzeroshot" in printed
    wait_until(lambda: actors() == 0, "every worker to end", START_S)


def actors() -> int:
    return sum(line.startswith("ray::RemoteHost") for line in system.commands().values())


def test_more_workers_than_cores_are_refused(nodes: Nodes, features: Path, tmp_path: Path) -> None:
    ended = refused(features, tmp_path, nodes, "--workers", "50")
    assert ended.returncode == 10, ended.stderr
    assert "--workers 50: the Ray cluster has only 2 cores" in ended.stderr


def refused(features: Path, out: Path, nodes: Nodes, *more: str) -> Any:
    return system.run(
        *words(features, out, "zeroshot", "--ray", nodes.address, *more), timeout_s=START_S
    )


def test_a_node_with_another_version_is_named(
    nodes: Nodes, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray puts the folder in which a command runs before all others on the workers' path.
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "old" / "fedclip_edge"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "0.0.1"\n')
    third = nodes.join(PYTHONPATH=str(package.parent))
    try:
        ended = refused(features, tmp_path / "out", nodes)
    finally:
        end(third)
    assert ended.returncode == 15, ended.stderr
    assert "of the Ray cluster has fedclip-edge 0.0.1, but this one has" in ended.stderr


def test_a_node_that_dies_ends_the_run_with_its_name(features: Path, tmp_path: Path) -> None:
    """A cluster of its own: Ray needs a while to forget a node that was killed."""
    with contextlib.ExitStack() as stack:
        nodes = Nodes(stack)
        second = nodes.join()
        with system.started(
            *endless(features, tmp_path, nodes), stderr=subprocess.PIPE, timeout_s=2 * START_S
        ) as running:
            wait_for_a_round(tmp_path)
            end(second)
            printed, errors = running.communicate(timeout=START_S)
    assert running.returncode == 15, errors
    assert "fedclip-edge: the Ray cluster lost a worker on the machine" in errors
    assert "Traceback" not in errors
    assert "\nzeroshot" in printed
