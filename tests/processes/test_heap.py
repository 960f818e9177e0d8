"""Freed memory of a real process: it goes back to the operating system with glibc."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from fedclip_edge.processes import heap

_PROGRAM = """
import numpy as np
from fedclip_edge.processes import heap

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def freed(work):
    before = resident()
    work()
    print(before - resident())
"""
# numpy's buffers come from malloc. Each tenth one stays, so the heap cannot shrink at its end.
_SMALL = """
blocks = [np.ones(8000, np.uint8) for _ in range(10_000)]
blocks[:] = blocks[::10]
freed(heap.trim)
"""
# By default, glibc keeps all of these: one was larger, and the small ones behind each stay.
_LARGE = """
heap.free_large_at_once()
del (largest := [np.ones(20_000_000, np.uint8)])[:]
blocks = [(np.ones(1_000_000, np.uint8), np.ones(8000, np.uint8)) for _ in range(50)]
freed(lambda: blocks.__setitem__(slice(None), [small for _, small in blocks]))
"""
glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")


def freed_by(program: str) -> int:
    command = [sys.executable, "-c", _PROGRAM + program]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@glibc_only
def test_freed_memory_goes_back() -> None:
    assert freed_by(_SMALL) > 20e6


@glibc_only
def test_large_blocks_go_back_at_once() -> None:
    assert freed_by(_LARGE) > 45e6


def test_another_c_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_malloc_trim", lambda: None)
    heap.trim()
    heap.free_large_at_once()
