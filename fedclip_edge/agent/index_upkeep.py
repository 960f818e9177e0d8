"""Upkeep of the index of pictures while the agent runs: saving, and the audit of known files.

Law: while the index cannot be written, it stays in memory, and the log says so once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.errors import DiskError
from fedclip_edge.vision.picture_index import PictureIndex

AUDIT_S = 10.0  # between two files: 50,000 pictures take six days


@dataclass(eq=False)
class IndexUpkeep:
    """The upkeep of one index; `now` is monotonic, in seconds."""

    index: PictureIndex
    has_news: bool = False  # that are not saved, apart from the times of the audit
    _audit_at: float = 0.0
    _is_unsaved: bool = False  # the last attempt failed

    def begin(self, now: float) -> None:
        """Have the first audit AUDIT_S from now."""
        self._audit_at = now + AUDIT_S

    def save(self) -> None:
        """Save the index; one log line if the disk is full or cannot be written."""
        try:
            self.index.save()
        except DiskError as error:
            if not self._is_unsaved:
                log.event("picture_index_not_saved", file=self.index.file, reason=str(error))
            self._is_unsaved = True
        else:
            self._is_unsaved = self.has_news = False

    def look(self, now: float) -> Path | None:
        """If it is time, save news and read a known file again; return it if it had changed."""
        if now < self._audit_at:
            return None
        self._audit_at = now + AUDIT_S
        if self.has_news:
            self.save()
        changed = self.index.audit()
        if changed is not None:
            log.event("picture_changed_unnoticed", picture=changed)
        return changed
