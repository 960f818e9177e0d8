"""The pictures of a device by the ids of its page: the first 20 hex digits of the picture hash."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedclip_edge.vision.picture_index import FileState, read_index, state_of

ID_DIGITS = 20  # 80 bits, so two pictures of one device never have the same id by chance


def id_of(picture: str) -> str:
    """Return the id of a picture with this hash."""
    return picture[:ID_DIGITS]


@dataclass(frozen=True)
class Known:
    """A picture as its agent last read it."""

    path: Path
    hash: str
    state: FileState  # of the file when it was read


@dataclass(eq=False)
class PictureMap:
    """The pictures in the index of a device (`vision/picture_index.py`).

    The index is read again when it changes. Threads may use the map at the same time.
    """

    index: Path
    _seen: tuple[FileState | None, ...] = ()
    _by_id: Mapping[str, Known] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def all(self) -> Mapping[str, Known]:
        """Return the pictures by id; of equal pictures, one. The mapping is not changed later."""
        with self._lock:
            seen = tuple(_state(Path(f"{self.index}{end}")) for end in ("", "-wal"))
            if seen != self._seen:
                self._by_id = {
                    id_of(known.hash): known
                    for known in (Known(*row) for row in read_index(self.index).files())
                }
                self._seen = seen
            return self._by_id

    def find(self, picture: str) -> Known | None:
        """Return the picture with this id, or None."""
        return self.all().get(picture)


def _state(path: Path) -> FileState | None:
    try:
        return state_of(path)
    except OSError:
        return None
