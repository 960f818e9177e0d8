"""A lock on a file, held by one process at a time."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from fedclip_edge.errors import ConfigError


def lock_file(path: Path, what: str) -> IO[bytes]:
    """Locks `path` for as long as the file returned stays open; a killed process lets go.

    Raises ConfigError where another process holds it.
    """
    held = path.open("ab")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        raise ConfigError(
            f"{what} is in use by another process; end that one, or name another"
        ) from None
    return held
