"""The heap of this process: memory that was freed goes back to the operating system.

glibc keeps what is freed between blocks that are still in use. After the messages of a run, that is
several megabytes in a process that then waits for days.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
from collections.abc import Callable

# Parameters of mallopt, from glibc's malloc.h.
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
_LARGE_BYTES = 128 * 1024


def trim() -> None:
    """Give freed memory back; without glibc, only collect garbage."""
    gc.collect()
    function = _malloc_trim()
    if function is not None:
        function(0)


def free_large_at_once() -> None:
    """Let each large block go back when it is freed; without glibc, do nothing.

    After the first large block, glibc keeps others of that size in the heap of their thread. All
    threads share one heap from now on.
    """
    if sys.platform != "linux":
        return
    function = getattr(ctypes.CDLL(None), "mallopt", None)
    if function is not None:
        function(_MMAP_THRESHOLD, _LARGE_BYTES)
        function(_ARENA_MAX, 1)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """The function of glibc; None with another C library, such as musl, or another system."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
