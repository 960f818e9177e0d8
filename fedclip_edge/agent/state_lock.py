"""The lock of a device's state_dir, which one agent at a time uses.

Laws:
- An agent whose state_dir was deleted, replaced or unmounted ends within LOOK_S. It could not keep
  what it has to keep, and a second agent could use a folder of the same name.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fedclip_edge.errors import DiskError
from fedclip_edge.storage.lock import lock_file

LOCK = "lock"  # in state_dir
LOOK_S = 2.0


@dataclass(eq=False)
class StateLock:
    """The held lock of `folder`."""

    folder: Path
    held: IO[bytes]
    _next_at: float = -math.inf

    def look(self, now: float) -> None:
        """Raise DiskError if the lock is no longer in `folder`; `now` is monotonic, in seconds."""
        if now < self._next_at:
            return
        try:
            found = os.stat(self.folder / LOCK)  # noqa: PTH116 - as os.fstat
        except (FileNotFoundError, NotADirectoryError):
            found = None
        except OSError:  # a disk that hangs is no other disk
            self._next_at = now + LOOK_S
            return
        if found is None or not os.path.samestat(found, os.fstat(self.held.fileno())):
            raise DiskError(
                f"state_dir {self.folder} was deleted, replaced or unmounted while the agent ran; "
                "mount it, or start the agent again to make a new one"
            )
        self._next_at = now + LOOK_S

    def close(self) -> None:
        """Release the lock."""
        self.held.close()


def lock_state_dir(folder: Path) -> StateLock:
    """Lock the folder; raises the errors of `lock_file`."""
    return StateLock(folder, lock_file(folder / LOCK, f"state_dir {folder}"))
