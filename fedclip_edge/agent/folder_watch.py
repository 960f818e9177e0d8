"""The pictures in a device's folders as they come and go while its agent runs.

The operating system reports changed files (`file_events.py`), and searches find the others. What is
found is read when it is not being written any more (`unread_files.py`), and counted by its bytes
(`known_pictures.py`).

Laws:

- `changes` does not wait for a picture (`unread_files.py`).
- Pictures that exist when the agent starts for the first time are not new. At later starts, those
  that are not `settled` yet are.
- A picture whose file may only have been renamed is not removed: its new file may be unread yet.
- Of a folder that is away (`folder_guard.py`), nothing is removed. After it has come back, as after
  the start, nothing is removed before all files were found and read.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from fedclip_edge.agent.file_events import FileEvents
from fedclip_edge.agent.folder_guard import FolderGuard
from fedclip_edge.agent.index_upkeep import IndexUpkeep
from fedclip_edge.agent.known_pictures import KnownPictures
from fedclip_edge.agent.unread_files import UnreadFiles
from fedclip_edge.vision.datasets import Picture
from fedclip_edge.vision.labels import UNLABELLED
from fedclip_edge.vision.picture_files import find_pictures, is_ignored, is_picture
from fedclip_edge.vision.picture_index import FileState, PictureIndex, state_of

_LOOK_S = 1.0  # between two looks at the folders themselves
_SEARCH_S = 600.0  # between two searches of watched folders, for what was not reported
_AGAIN_S = 2.0  # after a folder came: what came into it before its watch is not reported
_SEARCH_SHARE = 20  # without a watch, searches take at most one twentieth of the time


@dataclass(frozen=True)
class Changes:
    """The pictures that came and went."""

    new: tuple[Picture, ...] = ()  # one for each hash, without a label: their answers need none
    removed: tuple[str, ...] = ()  # hashes
    old: tuple[str, ...] = ()  # hashes that are not new, because they were there at the first start


def _keep_all(_hashes: Sequence[str]) -> None:
    """Forget nothing."""


@dataclass(eq=False)
class FolderWatch:
    """The pictures below `folder`, and below `inbox` if there is one.

    `classes` are the labels by class name, as `labels_of` returns them. `settled` are the hashes of
    pictures that are not new; None if this is the first start. `forget` is called with the hashes
    of removed pictures before `changes` returns them. Use it in a `with` block, and enter that when
    the index is open and before the index is used.
    """

    folder: Path
    inbox: Path | None
    index: PictureIndex
    classes: Mapping[str, int] = field(default_factory=dict)
    settled: Collection[str] | None = None
    forget: Callable[[Sequence[str]], None] = _keep_all
    events: FileEvents = field(init=False)
    upkeep: IndexUpkeep = field(init=False)
    _unread: UnreadFiles = field(init=False)
    _pictures: KnownPictures = field(default_factory=KnownPictures)
    _guards: tuple[FolderGuard, ...] = ()
    _new: list[Picture] = field(default_factory=list)
    _old: list[str] = field(default_factory=list)
    _old_names: set[str] = field(default_factory=set)  # files that were there at the first start
    _is_first: bool = False  # this is the first start, and no search was made yet
    _look_at: float = -1.0
    _search_at: float = -1.0
    _has_searched: bool = False  # since the start, or since a folder came
    _found_unread: set[str] = field(default_factory=set)  # files that this search found
    _was_watching: bool = False

    def __post_init__(self) -> None:
        self.events = FileEvents(self.folders)
        self.upkeep = IndexUpkeep(self.index)
        self._unread = UnreadFiles(self.index, self._age_of)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that are watched."""
        return (self.folder,) if self.inbox is None else (self.folder, self.inbox)

    @property
    def has_unknown_files(self) -> bool:
        """True if files have come that were never read, so there may be new pictures soon."""
        return self._unread.has_unknown

    def __enter__(self) -> FolderWatch:
        """Begin to watch."""
        self._guards = tuple(
            FolderGuard(folder, folder == self.inbox, functools.partial(self._below, folder))
            for folder in self.folders
        )
        self._is_first = self.settled is None
        self._pictures.begin(self.settled or (), self.index.hashes(), time.monotonic())
        self.settled = ()  # it takes memory
        self.upkeep.begin(time.monotonic())
        self.events.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.events.stop()

    def is_away(self) -> bool:
        """Look at the folders; True if one of them is away."""
        away = [guard.look() for guard in self._guards]
        if any(guard.has_come for guard in self._guards):
            self._search_at, self._has_searched = -1.0, False
            self.events.start()  # the watch of what was there before is lost
        return any(away)

    def is_absent(self, path: Path) -> bool:
        """True if the folder of this picture was away at the last look."""
        return self._is_away(str(path))

    def changes(self, now: float | None = None) -> Changes:
        """Return the pictures that came and went since the last call; `now` is monotonic.

        Raises the errors of `forget`. While the index cannot be written, it stays in memory.
        """
        now = time.monotonic() if now is None else now
        reported = self.events.take()
        was_watching, self._was_watching = self._was_watching, self.events.is_watching
        is_due = now >= self._search_at or self._was_watching != was_watching
        if reported or is_due or now >= self._look_at:
            self._look_at = now + _LOOK_S
            self.is_away()
        for name in reported:
            self._note_report(name, now)
        if is_due:
            self._search(now)
        for name, found in self._unread.read(now, self._is_away):
            if found is None:
                self._take_away(name, now)
            else:
                self._add(name, found, now)
        removed = self._removed(now)
        changed = self.upkeep.look(now)
        if changed is not None:
            self._add(str(changed), self.index.hash_of(changed), now)
        new, self._new = tuple(self._new), []
        old, self._old = tuple(self._old), []
        return Changes(new, removed, old)

    def has_read_old(self) -> bool:
        """True if `changes` has returned all pictures that were there at the first start."""
        return self._has_searched and not any(name in self._unread for name in self._old_names)

    def _note_report(self, name: str, now: float) -> None:
        """Note a path that the operating system has reported."""
        if any(is_ignored(part) for part in self._inner(name)):
            return
        if is_picture(name):
            self._note(name, now)
        if os.path.isdir(name):  # noqa: PTH112 - no error for any name
            self._search_at = now
        elif name not in self._unread and not os.path.lexists(name):  # it may have been a folder
            self._search_at = min(self._search_at, now + _AGAIN_S)

    def _note(self, name: str, now: float) -> None:
        """Note the state of a file that may have come, changed or gone.

        A folder that is away is no evidence: what is in its place is not its content.
        """
        if self._is_away(name):
            return
        try:
            state = state_of(name)
        except OSError:
            self._unread.drop(name)
            self._take_away(name, now)
            return
        found = self.index.known_hash(name, state)
        if found is not None:
            self._add(name, found, now)
        else:
            self._unread.note(name, state, now)

    def _age_of(self, state: FileState) -> float:
        """Seconds since the file's last change; 0 if its file system may have another clock."""
        if not self.events.is_watching:
            return 0.0
        return max(0.0, time.time() - max(state.mtime_ns, state.ctime_ns) / 1e9)

    def _search(self, now: float) -> None:
        """Compare the folders with what is known."""
        began = time.monotonic()
        found = {
            str(picture.path)
            for folder in self.folders
            for picture in find_pictures(folder, self.classes).pictures
        }
        if self._is_first:
            self._old_names, self._is_first = set(found), False
        for name in found:
            self._note(name, now)
        for name in [name for name in self._pictures.names if name not in found]:
            if not self._is_away(name):
                self._take_away(name, now)
        if not self._has_searched:
            self._found_unread = {name for name in found if name in self._unread}
            self._has_searched = True
        took = time.monotonic() - began
        self._search_at = now + (
            _SEARCH_S if self.events.is_watching else max(_LOOK_S, _SEARCH_SHARE * took)
        )
        if not self.is_away():  # by now; a folder that has come is searched again
            self.index.keep_only(found)
            self.upkeep.save()

    def _add(self, name: str, found: str, now: float) -> None:
        """Note that a file has these bytes."""
        self.upkeep.has_news |= not self._pictures.has(name, found)
        if self._pictures.add(name, found, now):
            if name in self._old_names:
                self._old.append(found)
            else:
                self._new.append(Picture(Path(name), UNLABELLED, found))
        self._old_names.discard(name)

    def _take_away(self, name: str, now: float) -> None:
        """Note that a file is gone, or cannot be read."""
        # A reading for a run may have met a file that this watch has not read yet.
        self._pictures.remove(name, self.index.last_hash(name), now)

    def _removed(self, now: float) -> tuple[str, ...]:
        """Take the pictures that have been gone for long enough; none while a folder is away."""
        gone = self._pictures.gone(now)
        if not gone or self.is_away() or not self._has_searched:  # in this order
            return ()
        self._found_unread = {name for name in self._found_unread if name in self._unread}
        # A file that is still to be read may be a renamed one.
        if self._found_unread or self._unread.are_due(now):
            return ()
        self._pictures.forget(gone)
        self.forget(gone)
        return gone

    def _is_away(self, name: str) -> bool:
        return any(guard.is_away and _is_below(name, guard.folder) for guard in self._guards)

    def _below(self, folder: Path) -> list[str]:
        return [name for name in self.index.paths() if _is_below(name, folder)]

    def _inner(self, name: str) -> tuple[str, ...]:
        """The parts of a path below the watched folder."""
        folder = next((one for one in self.folders if _is_below(name, one)), None)
        return Path(name).relative_to(folder).parts if folder else ()


def _is_below(name: str, folder: Path) -> bool:
    return name.startswith(f"{folder}{os.sep}")
