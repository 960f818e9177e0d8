"""A named pipe in place of a file: opening it waits for a writer that never comes."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def pipe_at(path: Path, frees_in_s: float = 10.0) -> Iterator[None]:
    """Make a named pipe; fail if a reader waits for it, after it was set free."""
    os.mkfifo(path)
    waited = threading.Event()

    def set_free() -> None:
        with contextlib.suppress(OSError):  # ENXIO: no reader waits
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            waited.set()

    timer = threading.Timer(frees_in_s, set_free)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
    assert not waited.is_set(), f"a reader waited for {path}"
