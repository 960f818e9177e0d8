"""Locks on a file or a folder that one process at a time can hold."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fedclip_edge.errors import ConfigError

# `is_locked` holds a lock for a moment: that is no other process that uses the file.
_LOOKS_S = 0.5


def lock_file(path: Path, what: str) -> IO[bytes]:
    """Lock the file `path` until the returned file is closed or the process ends.

    `what` is the name used in the error message. Raises ConfigError if another process holds the
    lock, and OSError if the file cannot be opened.
    """
    held, ends_at = path.open("ab"), time.monotonic() + _LOOKS_S
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() < ends_at:
                time.sleep(_LOOKS_S / 10)
                continue
            held.close()
            raise ConfigError(
                f"{what} is in use by another process; stop that process, or use another path"
            ) from None
        return held


def is_locked(path: Path) -> bool:
    """True if another process holds the lock of the file; nothing is made or changed."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of an existing folder; wait while another process holds it.

    Raises OSError if the folder cannot be opened.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
