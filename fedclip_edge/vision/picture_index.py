"""The hashes of picture files that were read before, so that an unchanged file is not read again.

Law: a hash is given again only if the file's size, times, inode and device are those at the last
reading, and if the file had not changed within RECENT_S before that: a file system's clock may be
too coarse to show a further change.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedclip_edge.vision.pictures import picture_hash

RECENT_S = 3.0  # FAT has a resolution of 2 s

_State = tuple[int, int, int, int, int]


def hash_file(path: Path) -> str:
    """Read a file and return its picture hash; raises OSError."""
    return picture_hash(path.read_bytes())


@dataclass(eq=False)
class PictureIndex:
    """The index of one folder, in memory. `clock` gives the Unix time in seconds."""

    clock: Callable[[], float] = time.time
    _known: dict[Path, tuple[_State, str]] = field(default_factory=dict)
    _asked: dict[Path, tuple[_State, str]] = field(default_factory=dict)

    def hash_of(self, path: Path) -> str:
        """The picture hash of a file, which is read if it may have changed; raises OSError."""
        state = _state(path.stat())
        known = self._known.get(path)
        if known is not None and known[0] == state:
            found = known[1]
        else:
            before_s = self.clock() - RECENT_S
            found = hash_file(path)
            if max(state[1], state[2]) >= before_s * 1e9:
                return found  # not to be relied on the next time
        self._asked[path] = (state, found)
        return found

    def forget_others(self) -> None:
        """Forget every file that was not asked for since the last call."""
        self._known, self._asked = self._asked, {}


def _state(found: os.stat_result) -> _State:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev
