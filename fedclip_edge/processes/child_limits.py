"""Limits of a child process: its priority, its processors and its memory."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class ChildLimits:
    """Limits of one child process. None: no limit."""

    nice: int = 0  # added to the child's niceness: more is a lower priority
    processors: int | None = None  # number of processors that its threads run on
    memory_mb: int | None = None  # its parent ends it if it has more

    def to_argument(self) -> str:
        """The limits as one word of a command line."""
        return json.dumps(asdict(self))

    @staticmethod
    def of_argument(word: str) -> ChildLimits:
        """The limits that `to_argument` wrote."""
        return ChildLimits(**json.loads(word))

    def apply(self) -> None:
        """Limit priority and processors of this process, as far as the system allows it."""
        with contextlib.suppress(OSError):
            os.nice(self.nice)
        if self.processors is not None and hasattr(os, "sched_setaffinity"):
            # The last ones: interrupts, and programs that are bound to one, are on the first.
            allowed = sorted(os.sched_getaffinity(0))[-self.processors :]
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, allowed)


def memory_mb_of(pid: int) -> int | None:
    """Memory of a process in megabytes (10^6 bytes), with its share of what it shares with others.

    None if the process has ended, or where Linux's /proc is missing.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            return int(value.split()[0]) * 1024 // 10**6
    return None
