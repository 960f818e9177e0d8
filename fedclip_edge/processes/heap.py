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


def keep_small() -> None:
    """Let large blocks go back as soon as they are freed; without glibc, do nothing.

    By default, glibc raises the size from which it does so to that of the largest block that was
    ever freed, and each thread has a heap of its own.
    """
    if sys.platform == "linux" and _malloc_trim() is not None:
        set_parameter = ctypes.CDLL(None).mallopt
        set_parameter(_MMAP_THRESHOLD, _LARGE_BYTES)
        set_parameter(_ARENA_MAX, 1)


def trim() -> None:
    """Give freed memory back; without glibc, only collect garbage."""
    gc.collect()
    function = _malloc_trim()
    if function is not None:
        function(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """The function of glibc; None with another C library, such as musl, or another system."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
