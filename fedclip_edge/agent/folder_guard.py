"""Detection of a folder that is away: a network share or a disk that is not mounted.

Laws:
- A folder is away if it is missing or unreadable, if it is empty although pictures were known in it
  (unless it may be emptied), or if it is on another file system than before and none of the known
  pictures is in its place.
- A folder that may be emptied is away for LATE_S if it is found empty at the start, or if an empty
  folder is in its place: its share may be mounted late.
- The log says so once, and once again when the folder is back.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.vision.picture_files import is_ignored

LATE_S = 600.0
_TRIED = 100  # known pictures that are looked for on another file system


@dataclass(eq=False)
class FolderGuard:
    """The guard of one folder."""

    folder: Path
    may_be_empty: bool
    known: Callable[[], Collection[str]]  # the paths of the pictures that were found in it
    is_away: bool = False
    has_come: bool = False  # it is back, or another folder is in its place, since the last look
    clock: Callable[[], float] = time.monotonic
    _empty_since: float | None = None  # at the start, or since another folder is in its place
    _place: tuple[int, int] | None = None  # the folder's file system, and its inode there

    def look(self) -> bool:
        """Look at the folder again, and return `is_away`."""
        before, was_away = self._place, self.is_away
        reason = self._reason()
        self.has_come = not reason and (was_away or before not in (None, self._place))
        if reason and not self.is_away:
            log.event("folder_away", folder=self.folder, reason=reason, pictures=len(self.known()))
        elif self.is_away and not reason:
            log.event("folder_back", folder=self.folder)
        self.is_away = bool(reason)
        return self.is_away

    def _reason(self) -> str:
        try:
            found = self.folder.stat()
            with os.scandir(self.folder) as entries:
                is_empty = all(is_ignored(entry.name) for entry in entries)
        except OSError as error:
            return f"it cannot be read: {error.strerror or error}"
        if is_empty and not self.may_be_empty and self.known():
            return "it is empty, but pictures were known in it; mount it, or put pictures into it"
        place = found.st_dev, found.st_ino
        if self._place is not None and self._place[0] != found.st_dev:
            some = list(itertools.islice(self.known(), _TRIED))
            if some and not any(map(os.path.exists, some)):
                return (
                    "it is on another file system, without the known pictures; if that is right, "
                    "restart the agent"
                )
        if place != self._place and self._may_come(is_empty):
            return (
                "an empty folder is in the place of one with pictures; mount it, or put pictures "
                f"into it; after {LATE_S:g} s it counts as emptied"
            )
        self._place, self._empty_since = place, None
        return ""

    def _may_come(self, is_empty: bool) -> bool:
        """True while the empty folder may be one that is not mounted yet."""
        if not is_empty or not self.known():
            return False
        if self._empty_since is None:
            self._empty_since = self.clock()
        return self.clock() - self._empty_since < LATE_S
