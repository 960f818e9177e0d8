"""The pictures in a device's folders as they come and go while its agent runs.

Laws:

- `changes` does not wait for a picture: it reads files for at most _BUDGET_S, or one file, and goes
  on at the next call.
- A picture is new when no file had its bytes before: a renamed or copied one is not new. It is
  removed when no file has had its bytes for _GONE_S: a renamed one is not removed.
- A file is read when it has not changed for _STILL_S; for _INCOMPLETE_S if its end is missing.
- Pictures that exist when the agent starts for the first time are not new. At later starts, those
  that are not `settled` yet are.
- Of a folder that is away (`folder_guard.py`), nothing is removed.
"""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from fedclip_edge import log
from fedclip_edge.agent.file_events import FileEvents
from fedclip_edge.agent.folder_guard import FolderGuard
from fedclip_edge.errors import DiskError
from fedclip_edge.vision.completeness import is_complete
from fedclip_edge.vision.datasets import Picture
from fedclip_edge.vision.labels import UNLABELLED
from fedclip_edge.vision.picture_files import find_pictures, is_ignored, is_picture, unreadable
from fedclip_edge.vision.picture_index import FileState, PictureIndex, state_of

_STILL_S = 0.25
_INCOMPLETE_S = 5.0
_GONE_S = 2.0
_BUDGET_S = 0.1
_LOOK_S = 1.0  # between two looks at the folders themselves
_SEARCH_S = 600.0  # between two searches of watched folders, for what was not reported
_AGAIN_S = 2.0  # after a folder came: what came into it before its watch is not reported
_SEARCH_SHARE = 20  # without a watch, searches take at most one twentieth of the time
_AUDIT_S = 10.0  # between two files: 50,000 pictures take six days


@dataclass(frozen=True)
class Changes:
    """The pictures that came and went."""

    new: tuple[Picture, ...] = ()  # one for each hash; its label may be UNLABELLED
    removed: tuple[str, ...] = ()  # hashes
    old: tuple[str, ...] = ()  # hashes that are not new, because they were there at the first start


@dataclass
class _Pending:
    """A file that is read when it has been still for long enough."""

    state: FileState
    since: float  # monotonic time of its last change, as far as that is known


def _no_label(_path: Path, _hash: str) -> int:
    return UNLABELLED


def _keep_all(_hashes: Sequence[str]) -> None:
    """Forget nothing."""


@dataclass(eq=False)
class FolderWatch:
    """The pictures below `folder`, and below `inbox` if there is one.

    `classes` are the labels by class name, as `labels_of` returns them. `settled` are the hashes of
    pictures that are not new; None if this is the first start. `label_of` gives the label of a path
    and its hash. `forget` is called with the hashes of removed pictures before `changes`
    returns them. Use it in a `with` block, and enter that when the index is open and before the
    index is used.
    """

    folder: Path
    inbox: Path | None
    index: PictureIndex
    classes: Mapping[str, int] = field(default_factory=dict)
    settled: Collection[str] | None = None
    label_of: Callable[[Path, str], int] = _no_label
    forget: Callable[[Sequence[str]], None] = _keep_all
    events: FileEvents = field(init=False)
    _guards: tuple[FolderGuard, ...] = ()
    _paths: dict[str, str] = field(default_factory=dict)  # hash by path
    _copies: Counter[str] = field(default_factory=Counter)  # number of files by hash
    _pending: dict[str, _Pending] = field(default_factory=dict)
    _unreadable: dict[str, FileState] = field(default_factory=dict)  # at the last attempt
    _gone: dict[str, float] = field(default_factory=dict)  # by hash, the time when it went
    _known: set[str] = field(default_factory=set)  # hashes that are not new
    _new: list[Picture] = field(default_factory=list)
    _old: list[str] = field(default_factory=list)
    _old_paths: set[str] = field(default_factory=set)  # files that were there at the first start
    _is_first: bool = False  # this is the first start, and no search was made yet
    _look_at: float = -1.0
    _search_at: float = -1.0
    _audit_at: float = -1.0
    _has_searched: bool = False
    _was_watching: bool = False
    _has_news: bool = False  # that the index has not saved
    _is_unsaved: bool = False  # the last attempt failed

    def __post_init__(self) -> None:
        self.events = FileEvents(self.folders)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that are watched."""
        return (self.folder,) if self.inbox is None else (self.folder, self.inbox)

    def __enter__(self) -> FolderWatch:
        """Begin to watch."""
        self._guards = tuple(
            FolderGuard(folder, folder == self.inbox, functools.partial(self._below, folder))
            for folder in self.folders
        )
        self._is_first = self.settled is None
        self._known, self.settled = set(self.settled or ()), ()
        # Until a file has them.
        self._gone = dict.fromkeys(self._known | self.index.hashes(), time.monotonic())
        self._audit_at = time.monotonic() + _AUDIT_S
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
            self._search_at = -1.0
            self.events.start()  # the watch of what was there before is lost
        return any(away)

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
        self._read_settled(now)
        removed = self._removed(now)
        if now >= self._audit_at:
            self._audit_at = now + _AUDIT_S
            self._audit(now)
        new, self._new = tuple(self._new), []
        old, self._old = tuple(self._old), []
        return Changes(new, removed, old)

    def has_read_old(self) -> bool:
        """True if `changes` has returned all pictures that were there at the first start."""
        return self._has_searched and self._old_paths.isdisjoint(self._pending)

    def _note_report(self, name: str, now: float) -> None:
        """Note a path that the operating system has reported."""
        if any(is_ignored(part) for part in self._inner(name)):
            return
        if is_picture(name):
            self._note(name, now)
        if os.path.isdir(name):  # noqa: PTH112 - no error for any name
            self._search_at = now
        elif name not in self._pending and not os.path.lexists(name):  # it may have been a folder
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
            self._pending.pop(name, None)
            self._unreadable.pop(name, None)
            self._take_away(name, now)
            return
        found = self.index.known_hash(name, state)
        before = self._pending.get(name)
        if found is not None:
            self._add(name, found, now)
        elif self._unreadable.get(name) == state:
            return
        elif before is None or before.state != state:
            self._pending[name] = _Pending(state, now - self._age(state))

    def _age(self, state: FileState) -> float:
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
            self._old_paths, self._is_first = set(found), False
        for name in found:
            self._note(name, now)
        for name in [name for name in self._paths if name not in found]:
            if not self._is_away(name):
                self._take_away(name, now)
        self._has_searched = True
        took = time.monotonic() - began
        self._search_at = now + (
            _SEARCH_S if self.events.is_watching else max(_LOOK_S, _SEARCH_SHARE * took)
        )
        if not self.is_away():  # by now; a folder that has come is searched again
            self.index.keep_only(found)
            self._save()

    def _read_settled(self, now: float) -> None:
        """Read the files that are not being written any more."""
        ends = time.monotonic() + _BUDGET_S
        for name, pending in list(self._pending.items()):
            if now - pending.since < _STILL_S or self._is_away(name):
                continue
            path = Path(name)
            try:
                state = state_of(name)
                if state != pending.state:
                    pending.state, pending.since = state, now - self._age(state)
                    continue
                if now - pending.since < _INCOMPLETE_S and not is_complete(path):
                    continue
                found = self.index.hash_of(path)
            except OSError as error:
                if not self._is_away(name):
                    self._take_away(name, now)
                    self._leave_out(path, pending.state, error)
            else:
                self._add(name, found, now)
            del self._pending[name]
            if time.monotonic() > ends:
                return

    def _add(self, name: str, found: str, now: float) -> None:
        """Note that a file has these bytes."""
        self._gone.pop(found, None)
        before = self._paths.get(name)
        if before != found:
            if before is not None:
                self._take_away(name, now)
            self._paths[name] = found
            self._copies[found] += 1
            self._has_news = True
        if found not in self._known:
            self._known.add(found)
            if name in self._old_paths:
                self._old.append(found)
            else:
                path = Path(name)
                self._new.append(Picture(path, self.label_of(path, found), found))
        self._old_paths.discard(name)

    def _leave_out(self, path: Path, state: FileState, error: OSError) -> None:
        """Log a file that cannot be read, once until it changes, if it is there at all."""
        if path.exists() and not path.is_dir():
            self._unreadable[str(path)] = state
            log.event("picture_skipped", picture=path, reason=unreadable(error))

    def _take_away(self, name: str, now: float) -> None:
        """Note that a file is gone, or has other bytes."""
        # A reading for a run may have met a file that this watch has not read yet.
        gone = self._paths.pop(name, None)
        if gone is None:
            gone = self.index.last_hash(name)
        else:
            self._copies[gone] -= 1
        if gone is not None and self._copies[gone] <= 0:
            del self._copies[gone]
            self._gone[gone] = now

    def _removed(self, now: float) -> tuple[str, ...]:
        """Take the hashes that have been gone for long enough; none while a folder is away."""
        due = [found for found, since in self._gone.items() if now - since >= _GONE_S]
        # A file that is still to be read may be a renamed one.
        unread = any(now - pending.since >= _STILL_S for pending in self._pending.values())
        if not due or unread or not self._has_searched or self.is_away():
            return ()
        for found in due:
            del self._gone[found]
            self._known.discard(found)
        self.forget(due)
        return tuple(due)

    def _audit(self, now: float) -> None:
        """Save the index if there is something new, and read one known file again."""
        if self._has_news:
            self._has_news = not self._save()
        changed = self.index.audit()
        if changed is not None:
            log.event("picture_changed_unnoticed", picture=changed)
            self._add(str(changed), self.index.hash_of(changed), now)

    def _save(self) -> bool:
        """Save the index; False, and one log line, if the disk is full or cannot be written."""
        try:
            self.index.save()
        except DiskError as error:
            if not self._is_unsaved:
                log.event("picture_index_not_saved", file=self.index.file, reason=str(error))
            self._is_unsaved = True
        else:
            self._is_unsaved = False
        return not self._is_unsaved

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
