"""Faults for a fleet of real processes, and the phases of a round in which they are injected.

A phase is recognised by a process's log or by the messages on the link, never by waiting. The
victim is one agent, with its link and its disk; coordinator and broker belong to the whole fleet.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from faulty_fleet import AGENTS, COORDINATOR, HOLD_FILE, RULES, VICTIM, Fleet
from link import Seen, Slow
from noise import Noise

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.protocol.chunks import is_chunk

Phase = Literal["idle", "download", "training", "upload", "aggregation", "vote"]
PHASES: tuple[Phase, ...] = get_args(Phase)
LOGGED: tuple[Phase, ...] = ("training", "vote")  # seen in a log; the others on the link
BROKER = "broker"
ROUNDS, MANY_ROUNDS = 3, 12
_FIFTH = 5  # of about 15 chunks, so that some have arrived and others have not
DISK_MB = 64
SEES_FULL_DISK_S = 30.0
_HOUR_S = 3600


class Trigger:
    """Recognises a phase of round `first_round` or a later one."""

    def __init__(self, fleet: Fleet, phase: Phase, first_round: int) -> None:
        self._fleet = fleet
        self._phase = phase
        self._first_round = first_round
        self._chunks = 0
        self._event = "voting" if phase == "vote" else "training"
        self._logged_before = len(fleet.events(VICTIM, self._event))

    def seen(self, seen: Seen) -> bool:
        """True if this message on the link is the moment of the phase."""
        if self._fleet.round < self._first_round:
            return False
        if self._phase == "aggregation":
            kept = seen.client == COORDINATOR and seen.payload.startswith(b'{"kind":"kept"')
            return kept and self._fleet.kept(self._fleet.round) == set(AGENTS)
        if self._phase not in ("download", "upload") or seen.client != VICTIM:
            return False
        if is_chunk(seen.payload) and seen.upward == (self._phase == "upload"):
            self._chunks += 1
        return self._chunks == _FIFTH

    def logged(self) -> bool:
        """True if a process has just logged the moment of the phase."""
        found = self._fleet.events(VICTIM, self._event)[self._logged_before :]
        return self._phase in LOGGED and any(event["round"] >= self._first_round for event in found)


@dataclass(frozen=True)
class Injection:
    """The time of the injection, and the round that was open or next to open."""

    at: float
    round: int


@dataclass
class Aftermath:
    """Results that are known after a fault."""

    recovered_s: float | None = None  # until all devices were answered again
    note: str = ""


@dataclass(frozen=True)
class Fault:
    """A fault; every method may do nothing."""

    name: str
    title: str
    rules: RunRules = RULES
    rounds: int = ROUNDS  # of a run with the fault in one phase
    guests: tuple[str, ...] = ()  # further devices, which only evaluate
    # Until the end of the run; otherwise the fault ends before an idle fleet continues.
    lasts: bool = False
    nonsense: Mapping[Phase, str] = field(default_factory=dict)

    def impossible(self) -> str:
        """The reason why the fault cannot be tested on this machine; empty if it can."""
        return ""

    def prepare(self, fleet: Fleet) -> None:
        """Prepare the fault before any process starts."""

    def begin(self, fleet: Fleet) -> None:
        """Start what the fault needs, when all agents but the last one are there."""

    def inject(self, fleet: Fleet) -> None:
        """Inject the fault without waiting; this may be called in the thread of the link."""

    def over(self, fleet: Fleet, injection: Injection) -> Aftermath:
        """Wait for the end of the fault, and do what a supervisor or an operator would do."""
        return Aftermath()

    def clear(self, fleet: Fleet) -> None:
        """Clean up after all processes have ended."""


@dataclass(frozen=True)
class Kill(Fault):
    """Kill with SIGKILL. A supervisor restarts the process at once, or an agent after its round."""

    whom: str = VICTIM

    def inject(self, fleet: Fleet) -> None:
        if self.whom == BROKER:
            assert fleet.secured.process is not None
            fleet.secured.process.kill()
        else:
            fleet.processes[self.whom].kill()

    def over(self, fleet: Fleet, injection: Injection) -> Aftermath:
        if self.whom == BROKER:
            assert fleet.secured.process is not None
            fleet.secured.process.wait()
            restarted_at = time.monotonic()
            fleet.secured.start()
            return Aftermath(recovery_s(fleet, restarted_at))
        fleet.processes[self.whom].wait()
        if self.whom == VICTIM and fleet.is_open:
            fleet.wait(lambda: fleet.closed_at(injection.round) is not None, "the round to close")
        restarted_at = time.monotonic()
        fleet.start(self.whom)
        if self.whom != COORDINATOR:
            recovered_s = recovery_s(fleet, restarted_at, self.whom)
            late = recovered_s is None
            return Aftermath(recovered_s, "the run ended before the agent was back" if late else "")
        recovered_s = recovery_s(fleet, restarted_at)
        closed = fleet.events(COORDINATOR, "serving")[-1]["rounds_closed"]
        late = closed >= injection.round
        return Aftermath(recovered_s, "the round was already closed" if late else "")


@dataclass(frozen=True)
class NoQuorum(Fault):
    """Hold up the vote of all agents but the victim until the deadline."""

    def prepare(self, fleet: Fleet) -> None:
        for path in self._files(fleet):
            path.touch()

    def over(self, fleet: Fleet, injection: Injection) -> Aftermath:
        fleet.wait(lambda: fleet.closed_at(injection.round) is not None, "the deadline")
        for path in self._files(fleet):
            path.unlink()
        return Aftermath()

    def _files(self, fleet: Fleet) -> list[Path]:
        return [fleet.home(name) / HOLD_FILE for name in AGENTS if name != VICTIM]


@dataclass(frozen=True)
class Cut(Fault):
    """Reset all connections, including the coordinator's, and refuse new ones."""

    for_s: float = 0.0

    def inject(self, fleet: Fleet) -> None:
        fleet.link.cut()

    def over(self, fleet: Fleet, injection: Injection) -> Aftermath:
        time.sleep(max(0.0, injection.at + self.for_s - time.monotonic()))
        fleet.link.mend()
        return Aftermath(recovery_s(fleet, time.monotonic()))


@dataclass(frozen=True)
class SlowLink(Fault):
    """Slow down the victim's link until the round is closed."""

    slow: Slow = field(default_factory=lambda: Slow(80_000, reset_s=6.0))

    def inject(self, fleet: Fleet) -> None:
        fleet.link.slow(VICTIM, self.slow)

    def over(self, fleet: Fleet, injection: Injection) -> Aftermath:
        fleet.wait(lambda: fleet.closed_at(injection.round) is not None, "the round to close")
        fleet.link.slow(VICTIM, None)
        return Aftermath()


@dataclass(frozen=True)
class Noisy(Fault):
    """Damage or repeat every third chunk on the victim's link, both ways, until the run ends."""

    how: Literal["duplicate", "corrupt"] = "duplicate"

    def inject(self, fleet: Fleet) -> None:
        fleet.link.noise(VICTIM, Noise(self.how, every=3))


@dataclass(frozen=True)
class FullDisk(Fault):
    """Fill the disk of the coordinator or the victim, for SEES_FULL_DISK_S at most.

    Then the space is freed, and a supervisor restarts a process that has exited.
    """

    whose: str = COORDINATOR

    def impossible(self) -> str:
        if os.geteuid() != 0:
            return "needs root to mount a small disk"
        return "" if shutil.which("mount") else "needs mount(8)"

    def prepare(self, fleet: Fleet) -> None:
        home = str(fleet.home(self.whose))
        options = ["-t", "tmpfs", "-o", f"size={DISK_MB}m"]
        subprocess.run(["mount", *options, "tmpfs", home], check=True)

    def clear(self, fleet: Fleet) -> None:
        subprocess.run(["umount", str(fleet.home(self.whose))], check=True)

    def inject(self, fleet: Fleet) -> None:
        with self._filler(fleet).open("wb") as file:
            size = 0
            for step in (2**20, 2**12):
                with contextlib.suppress(OSError):  # stop when the disk is full
                    while True:
                        os.posix_fallocate(file.fileno(), size, step)
                        size += step

    def over(self, fleet: Fleet, injection: Injection) -> Aftermath:
        process = fleet.processes[self.whose]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SEES_FULL_DISK_S)
        self._filler(fleet).unlink()
        if process.poll() is None:
            return Aftermath(note="continued with the disk full")
        words = fleet.last_words(self.whose)
        assert words.startswith("fedclip-edge: "), f"exited without an error message: {words}"
        restarted_at = time.monotonic()
        fleet.start(self.whose)
        who = [] if self.whose == COORDINATOR else [self.whose]
        recovered_s = recovery_s(fleet, restarted_at, *who)
        return Aftermath(recovered_s, f"stopped with a message, exit code {process.returncode}")

    def _filler(self, fleet: Fleet) -> Path:
        return fleet.home(self.whose) / "filler"


@dataclass(frozen=True)
class Clock(Fault):
    """Set the coordinator's clock one hour ahead and the victim's one hour back."""

    def impossible(self) -> str:
        if not sys.platform.startswith("linux"):
            return "needs LD_PRELOAD"
        return "" if shutil.which("cc") else "needs a C compiler (cc) for the clock"

    def prepare(self, fleet: Fleet) -> None:
        library = fleet.folder / "other_clock.so"
        source = Path(__file__).with_name("other_clock.c")
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True)
        for name in (COORDINATOR, VICTIM):
            file = self._file(fleet, name)
            file.write_bytes(struct.pack("=q", 0))
            fleet.before[name] = ["env", f"LD_PRELOAD={library}", f"OTHER_CLOCK={file}"]

    def inject(self, fleet: Fleet) -> None:
        for name, off_s in ((COORDINATOR, _HOUR_S), (VICTIM, -_HOUR_S)):
            with self._file(fleet, name).open("r+b") as file:  # in place, since the file is mapped
                file.write(struct.pack("=q", off_s))

    def _file(self, fleet: Fleet, name: str) -> Path:
        return fleet.folder / f"{name}.clock"


def recovery_s(fleet: Fleet, since: float, *names: str) -> float | None:
    """Seconds until all running agents, or those named, got an answer to their hello.

    None if the run ended before.
    """
    waits_for = names or [n for n in AGENTS if n in fleet.processes]

    def answers() -> list[float]:
        found = [fleet.answered_at(name, since) for name in waits_for]
        return [at for at in found if at is not None]

    def settled() -> bool:
        return len(answers()) == len(waits_for) or fleet.done_at() is not None

    fleet.wait(settled, f"{', '.join(waits_for)} to be answered")
    return max(answers()) - since if len(answers()) == len(waits_for) else None
