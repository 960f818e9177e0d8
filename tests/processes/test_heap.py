"""Freed memory of a real process: it goes back to the operating system with glibc."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from fedclip_edge.processes import heap

# numpy's buffers come from malloc. Each tenth one stays, so the heap cannot shrink at its end.
_PROGRAM = """
import numpy as np
from fedclip_edge.processes import heap

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

blocks = [np.ones(8000, np.uint8) for _ in range(10_000)]
blocks[:] = blocks[::10]
before = resident()
heap.trim()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_freed_memory_goes_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 20e6


def test_another_c_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_malloc_trim", lambda: None)
    heap.trim()


# Pictures are decoded to blocks of 16 MB, by several threads.
_LARGE = """
import sys, threading
import numpy as np
from fedclip_edge.processes import heap

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def work():
    for _ in range(3):
        blocks = [np.ones(16_000_000, np.uint8) for _ in range(4)]
        kept.append(np.ones(200_000, np.uint8))  # above them in the heap

if sys.argv[1] == "at once":
    heap.free_large_at_once()
kept, before = [], resident()
threads = [threading.Thread(target=work) for _ in range(2)]
[one.start() for one in threads]
[one.join() for one in threads]
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_large_blocks_go_back_when_they_are_freed() -> None:
    kept = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", _LARGE, how], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("as usual", "at once")
    }
    assert kept["at once"] < 10e6 < kept["as usual"]
