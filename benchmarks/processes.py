"""Memory and CPU time of other processes, from the kernel."""

from __future__ import annotations

import os
from pathlib import Path


def memory_mb(process: int, field: str = "VmRSS") -> float:
    """Resident memory in megabytes; with `VmHWM`, its peak. Raises ValueError if it has ended."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(field)


def pss_mb(process: int) -> float:
    """Memory in megabytes, of which shared pages count in parts; ValueError if it has ended."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(process)


def processor_s(process: int) -> float:
    """CPU seconds that a process has used, in the kernel's steps of usually 10 ms."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
