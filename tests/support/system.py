"""Real processes with real files, as a user starts them; each is ended through its own handle."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.vision.bundle import Bundle

# Reached only by a fault: on a machine with ten busy processes for each core, a command that loads
# torch takes a minute to start.
DEADLINE_S = 180.0


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "fedclip_edge.cli.main", *map(str, arguments)]


def run(*arguments: str | Path, timeout_s: float = DEADLINE_S) -> subprocess.CompletedProcess[str]:
    """Run a command that ends on its own."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout_s, check=False
    )


@contextlib.contextmanager
def started(
    *arguments: str | Path,
    stderr: int | None = subprocess.STDOUT,
    new_session: bool = False,
    timeout_s: float = 3 * DEADLINE_S,
) -> Iterator[subprocess.Popen[str]]:
    """Start a command of fedclip-edge with its output in a pipe, as `running` does."""
    with running(
        command(*arguments),
        timeout_s=timeout_s,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=new_session,
    ) as process:
        yield process


@contextlib.contextmanager
def running(
    words: Sequence[str | Path], *, timeout_s: float = 3 * DEADLINE_S, **settings: Any
) -> Iterator[subprocess.Popen[Any]]:
    """Start a program, with the settings of `subprocess.Popen`.

    It is killed on exit or after a timeout, so no reader and no `wait` can hang. Then it is waited
    for and its pipes are closed. Otherwise its ResourceWarning would fail a later test.
    """
    with subprocess.Popen(words, **settings) as process:
        killer = threading.Timer(timeout_s, process.kill)
        killer.start()
        try:
            yield process
        finally:
            killer.cancel()
            process.kill()


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Write a line to the process's standard input, which is a pipe."""
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line of the process's standard output, which is a pipe."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def write_pictures(folder: Path, classes: Sequence[str], per_class: int, seed: int) -> None:
    """Write noise pictures with a different colour for each class."""
    random = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = random.integers(0, 120, (40, 40, 3))
            pixels[..., number % 3] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:03d}.png")


@dataclass
class Site:
    """The configurations of one fleet in one folder; as a context manager, also its processes."""

    folder: Path
    bundle: Bundle
    broker: BrokerAddress
    fleet: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    is_entered: bool = False

    def write_fleet(
        self, devices: int, rounds: int, extra: str = "", method: str = "fedclip"
    ) -> Path:
        path = self.folder / "fleet.toml"
        path.write_text(
            f'fleet = "{self.fleet}"\nbundle = "{self.bundle.folder}"\n'
            f"[broker]\nport = {self.broker.port}\n"
            f"[rules]\ndevices = {devices}\ndeadline_s = 60\ngrace_s = 20\n"
            f'[plan]\nmethod = "{method}"\nrounds = {rounds}\nvote = "off"\n'
            f"local_baseline = true\n{extra}"
        )
        return path

    def write_agent(self, name: str, *, per_class: int = 12, extra: str = "") -> Path:
        folder = self.folder / name
        folder.mkdir()
        write_pictures(folder / "pictures", self.bundle.classes.names, per_class, len(name))
        path = folder / "agent.toml"
        path.write_text(
            f'id = "{name}"\nfleet = "{self.fleet}"\nbundle = "{self.bundle.folder}"\n'
            f'state_dir = "state"\n{extra}\n[data]\nfolder = "pictures"\n'
            f"[broker]\nport = {self.broker.port}\n"
        )
        return path

    def start(self, *arguments: str | Path, log: str) -> subprocess.Popen[bytes]:
        return self.start_program(command(*arguments), log)

    def start_program(self, words: Sequence[str], log: str) -> subprocess.Popen[bytes]:
        assert self.is_entered, "nothing would end the process"
        with (self.folder / f"{log}.log").open("ab") as file:
            process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
        self.processes.append(process)
        return process

    def events(self, log: str) -> list[dict[str, Any]]:
        """The JSON lines of a log so far."""
        lines = (self.folder / f"{log}.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def text(self, log: str) -> str:
        return (self.folder / f"{log}.log").read_text()

    def __enter__(self) -> Site:
        self.is_entered = True
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()  # does nothing if it was waited for
            process.wait()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = DEADLINE_S) -> None:
    """Poll until `condition` holds; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still waiting after {timeout_s:g} s for {what}"
        time.sleep(0.05)


def of_process(pid: int, name: str) -> str:
    """The file `name` of /proc/PID, such as `cmdline`; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ended after the open
        return ""


def commands() -> dict[int, str]:
    """The command line of every process, by process id."""
    return {pid: of_process(pid, "cmdline").replace("\0", " ") for pid in _pids()}


def descendants(pid: int) -> set[int]:
    """The ids of all running processes that descend from it."""
    parents: dict[int, int] = {}
    for one in _pids():
        # The name in parentheses may contain anything; state and parent come after it.
        fields = of_process(one, "stat").rpartition(")")[2].split()
        if fields:
            parents[one] = int(fields[1])
    found, more = set[int](), {pid}
    while more:
        more = {child for child, parent in parents.items() if parent in more} - found
        found |= more
    return found


def process_of(argument: str) -> int:
    """The id of the only process with `argument` in its command line."""
    (found,) = (pid for pid, line in commands().items() if argument in line)
    return found


def _pids() -> list[int]:
    """The ids of all processes; some may have ended since."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
