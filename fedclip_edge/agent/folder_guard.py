"""Detection of a folder that is away: a network share or a disk that is not mounted.

Law: a folder is away if it is missing or unreadable, if it is empty although pictures were known in
it (unless it may be emptied), or if it is on another file system than before and none of the known
pictures is in its place. The log says so once, and once again when the folder is back.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.vision.picture_files import is_ignored

_TRIED = 100  # known pictures that are looked for on another file system


@dataclass(eq=False)
class FolderGuard:
    """The guard of one folder."""

    folder: Path
    may_be_empty: bool
    known: Callable[[], Collection[str]]  # the paths of the pictures that were found in it
    is_away: bool = False
    _device: int | None = None  # number of the folder's file system

    def look(self) -> bool:
        """Look at the folder again, and return `is_away`."""
        reason = self._reason()
        if reason and not self.is_away:
            log.event("folder_away", folder=self.folder, reason=reason, pictures=len(self.known()))
        elif self.is_away and not reason:
            log.event("folder_back", folder=self.folder)
        self.is_away = bool(reason)
        return self.is_away

    def _reason(self) -> str:
        try:
            device = self.folder.stat().st_dev
            with os.scandir(self.folder) as entries:
                is_empty = all(is_ignored(entry.name) for entry in entries)
        except OSError as error:
            return f"it cannot be read: {error.strerror or error}"
        if is_empty and not self.may_be_empty and self.known():
            return "it is empty, but pictures were known in it; mount it, or put pictures into it"
        if self._device not in (None, device):
            some = list(itertools.islice(self.known(), _TRIED))
            if some and not any(map(os.path.exists, some)):
                return (
                    "it is on another file system, without the known pictures; if that is right, "
                    "restart the agent"
                )
        self._device = device
        return ""
