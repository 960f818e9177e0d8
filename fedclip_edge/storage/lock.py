"""Lock on a file that one process at a time can hold."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from fedclip_edge.errors import ConfigError


def lock_file(path: Path, what: str) -> IO[bytes]:
    """Lock the file `path` until the returned file is closed or the process ends.

    `what` is the name used in the error message. Raises ConfigError if another process holds the
    lock, and OSError if the file cannot be opened.
    """
    held = path.open("ab")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        raise ConfigError(
            f"{what} is in use by another process; stop that process, or use another path"
        ) from None
    return held
