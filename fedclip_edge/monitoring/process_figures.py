"""Figures that the operating system gives about a process and its files."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def memory_bytes() -> int | None:
    """Resident memory of this process; None where Linux's /proc is missing."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def database_bytes(path: Path) -> int:
    """Size of a SQLite file with its write-ahead log; 0 if it does not exist."""
    total = 0
    for part in (path, Path(f"{path}-wal")):
        with contextlib.suppress(OSError):
            total += part.stat().st_size
    return total
