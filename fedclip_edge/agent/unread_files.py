"""Picture files that came or changed, until they are read.

Laws:

- A file is read when it has not changed for STILL_S; for INCOMPLETE_S if its end is missing.
- `read` reads files for at most BUDGET_S, or one file, and goes on at the next call.
- A file that cannot be read is logged, and not tried again until it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from fedclip_edge import log
from fedclip_edge.vision.completeness import is_complete
from fedclip_edge.vision.picture_files import unreadable
from fedclip_edge.vision.picture_index import FileState, PictureIndex, state_of

STILL_S = 0.25
INCOMPLETE_S = 5.0
BUDGET_S = 0.1


@dataclass
class _Unread:
    """A file that is read when it has been still for long enough."""

    state: FileState
    since: float  # monotonic time of its last change, as far as that is known


@dataclass(eq=False)
class UnreadFiles:
    """The files that `index` has yet to read.

    `age_of` gives the seconds since the last change that a state shows; 0 if it does not tell.
    """

    index: PictureIndex
    age_of: Callable[[FileState], float]
    _files: dict[str, _Unread] = field(default_factory=dict)
    _unreadable: dict[str, FileState] = field(default_factory=dict)  # at the last attempt

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def has_unknown(self) -> bool:
        """True if one of the files was never read, under this name."""
        return any(self.index.last_hash(name) is None for name in self._files)

    def note(self, name: str, state: FileState, now: float) -> None:
        """Note a file that came, or may have changed; `now` is monotonic, in seconds."""
        if self._unreadable.get(name) == state:
            return
        known = self._files.get(name)
        if known is None or known.state != state:
            self._files[name] = _Unread(state, now - self.age_of(state))

    def drop(self, name: str) -> None:
        """Forget a file that is gone."""
        self._files.pop(name, None)
        self._unreadable.pop(name, None)

    def are_due(self, now: float) -> bool:
        """True if there is a file that is not being written any more."""
        return any(now - file.since >= STILL_S for file in self._files.values())

    def read(self, now: float, skips: Callable[[str], bool]) -> Iterator[tuple[str, str | None]]:
        """Read the files that are due, and yield name and hash; None if one cannot be read.

        Files for which `skips` is true, before or after the attempt, wait.
        """
        ends = monotonic() + BUDGET_S
        for name, file in list(self._files.items()):
            if now - file.since < STILL_S or skips(name):
                continue
            path, found = Path(name), None
            try:
                state = state_of(name)
                if state != file.state:
                    file.state, file.since = state, now - self.age_of(state)
                    continue
                if now - file.since < INCOMPLETE_S and not is_complete(path):
                    continue
                found = self.index.hash_of(path)
            except OSError as error:
                if skips(name):
                    continue
                self._leave_out(path, file.state, error)
            self._files.pop(name, None)
            yield name, found
            if monotonic() > ends:
                return

    def _leave_out(self, path: Path, state: FileState, error: OSError) -> None:
        """Log a file that cannot be read, if it is there at all."""
        if path.exists() and not path.is_dir():
            self._unreadable[str(path)] = state
            log.event("picture_skipped", picture=path, reason=unreadable(error))
