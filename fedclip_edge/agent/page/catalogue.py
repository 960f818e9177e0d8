"""The pictures of a device as its page shows them: file, label, answer, side and feature.

Laws:
- No picture is opened, and no file is changed: everything comes from files that the agent writes,
  and from the names in the folders.
- The pictures and labels are those of vision/device_pictures.py, the rules that runs follow too.
- Equal pictures are one entry.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fedclip_edge.agent.answering import answers_path
from fedclip_edge.agent.features import CACHE, labels_for
from fedclip_edge.agent.grouping import known_sides
from fedclip_edge.agent.label_store import LABELS, confirmed_in
from fedclip_edge.agent.page.answered import Answered, AnswersRead
from fedclip_edge.agent.page.picture_map import Known, id_of
from fedclip_edge.agent.rescan import INDEX
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.errors import DataError, FedclipError
from fedclip_edge.vision.bundle import Bundle, key_of
from fedclip_edge.vision.cache_state import cached_pictures
from fedclip_edge.vision.datasets import Picture
from fedclip_edge.vision.device_pictures import read_device
from fedclip_edge.vision.labels import UNLABELLED, Labels
from fedclip_edge.vision.picture_index import FileState, read_index
from fedclip_edge.vision.provider_choice import FILE as CHOICE
from fedclip_edge.vision.provider_choice import kept_provider

PERSON = "a person"  # `by` of a label that a person gave on this device
_PAUSE_SHARE = 10  # a reading that nobody waits for comes after this many times its duration


class Entry(NamedTuple):
    """One picture, whatever the number of its copies."""

    id: str  # picture_map.py
    hash: str
    path: Path  # of the first copy
    at: float  # Unix time of the answer, otherwise of the last change of the file
    label: str  # empty without one
    by: str  # the place that gave the label, in words
    is_confirmed: bool  # a person has found this label right
    side: str  # train, validation or test; empty if the agent has not divided it yet
    has_feature: bool
    answer: Answered | None

    @property
    def likely(self) -> str:
        """The class by the label, otherwise by the answer; empty without both, or if unknown."""
        if self.label or self.answer is None or self.answer.is_unknown:
            return self.label
        return self.answer.label


@dataclass(frozen=True, eq=False)
class Pictures:
    """All pictures of one device at one time, the newest first."""

    entries: tuple[Entry, ...] = ()
    by_id: Mapping[str, Entry] = field(default_factory=dict)
    classes: tuple[str, ...] = ()  # of the bundle
    unread: int = 0  # files that the agent has not read yet, or cannot read
    trouble: str = ""  # why they are not newer, or why there are none


State = tuple[tuple[int, int, int], ...]


def file_states(*paths: Path) -> State:
    """Size, time and inode of files and their write-ahead logs; zeros for one that is missing."""
    return tuple(_state(Path(f"{path}{end}")) for path in paths for end in ("", "-wal"))


class Catalogue:
    """The pictures of one device; `refresh` reads what has changed. Several threads may use it.

    `bundle_now` gives the bundle in use, the same object while it is the same; None without one.
    """

    def __init__(self, config: AgentConfig, bundle_now: Callable[[], Bundle | None]) -> None:
        self._config = config
        self._bundle_now = bundle_now
        self._lock = threading.Lock()
        self._answers = AnswersRead(answers_path(config), config.answers.old_files)
        self._states: dict[str, State] = {}
        self._found = _Found()
        self._cached: frozenset[str] = frozenset()
        self._next_s = 0.0  # monotonic
        self.bundle: Bundle | None = None
        self.pictures = Pictures(trouble=_NO_BUNDLE)

    def refresh(self, *, soon: bool = False) -> Pictures:
        """Return the pictures as they are now. With `soon`, those of a moment ago may be enough.

        What cannot be read stays as it was, and `trouble` says so.
        """
        with self._lock:
            began = time.monotonic()
            if soon and began < self._next_s:
                return self.pictures
            try:
                self._refresh()
            except FedclipError as error:
                self._states.clear()
                self.pictures = _with_trouble(self.pictures, str(error))
            ended = time.monotonic()
            self._next_s = ended + _PAUSE_SHARE * (ended - began)
            return self.pictures

    def find(self, picture: str) -> Known | None:
        """Return the file of a picture that was there at the last refresh, by its id."""
        entry = self.pictures.by_id.get(picture)
        return None if entry is None else Known(entry.path, entry.hash, _UNKNOWN_STATE)

    def _refresh(self) -> None:
        config, answered = self._config, self._answers.refresh()
        bundle = self._bundle_now()
        if bundle is not self.bundle:
            self.bundle = bundle
            self._states.clear()
        if self.bundle is None:
            self.pictures = Pictures(trouble=_NO_BUNDLE)
            return
        # `or` would leave out the states of the files that follow.
        manifest = [] if config.data.labels is None else [config.data.labels]
        has_files = self._changed("files", config.state_dir / INDEX, *manifest)
        has_features = self._changed(
            "features", config.state_dir / CACHE, config.state_dir / CHOICE
        )
        has_labels = self._changed("labels", config.state_dir / LABELS)
        if has_features:
            self._cached = self._features(self.bundle)
        if has_files or not answered <= self._found.hashes:
            self._found = _find(config, self.bundle, self._answers.hashes)
            self._answers.forget_others(self._found.hashes)
        if has_files or has_features or has_labels or answered or self.pictures.trouble:
            self._found.labels.refresh()
            self.pictures = self._made(self.bundle.classes.names)

    def _changed(self, name: str, *paths: Path) -> bool:
        before, self._states[name] = self._states.get(name), file_states(*paths)
        return self._states[name] != before

    def _features(self, bundle: Bundle) -> frozenset[str]:
        file = self._config.state_dir / CACHE
        if not file.exists():
            return frozenset()
        encoder = kept_provider(bundle, self._config.encoder, self._config.state_dir)
        return cached_pictures(file, key_of(bundle, encoder))

    def _made(self, classes: tuple[str, ...]) -> Pictures:
        found = self._found
        newest, confirmed = self._answers.newest, confirmed_in(self._config.state_dir)
        entries: dict[str, Entry] = {}
        for picture in found.pictures:
            if picture.hash in entries:
                continue  # a copy; those with a label come first
            answer = newest.get(picture.hash)
            label = found.labels.of(picture.path, picture.hash)
            entries[picture.hash] = Entry(
                id_of(picture.hash),
                picture.hash,
                picture.path,
                found.came[picture.path] if answer is None else answer.at,
                "" if label == UNLABELLED else classes[label],
                found.labels.giver(picture.path, picture.hash),
                label != UNLABELLED and confirmed.get(picture.hash) == classes[label],
                found.sides.get(picture.hash, ""),
                picture.hash in self._cached,
                answer,
            )
        ordered = sorted(entries.values(), key=lambda entry: (-entry.at, str(entry.path)))
        by_id = {entry.id: entry for entry in ordered}
        return Pictures(tuple(ordered), by_id, classes, found.unread)


_UNKNOWN_STATE = FileState(-1, 0, 0, 0)  # no file has it
_NO_BUNDLE = "The device has no bundle yet, so the classes are not known. The agent fetches it."


@dataclass(frozen=True, eq=False)
class _Found:
    """The files of one search; labels may change without another one."""

    pictures: Sequence[Picture] = ()
    hashes: frozenset[str] = frozenset()
    came: Mapping[Path, float] = field(default_factory=dict)  # Unix time
    sides: Mapping[str, str] = field(default_factory=dict)  # by hash
    labels: Labels = field(default_factory=lambda: Labels(Path(), ()))
    unread: int = 0


def _find(config: AgentConfig, bundle: Bundle, answered: Mapping[str, str]) -> _Found:
    """Search the folders; a file whose hash the agent does not know is counted only."""
    index = read_index(config.state_dir / INDEX)
    unread = set[Path]()

    def hash_of(path: Path) -> str:
        # The agent saves its index some seconds after the answer.
        known = index.last_hash(str(path)) or answered.get(str(path))
        if known is None:
            unread.add(path)
            raise FileNotFoundError(f"{path} is not in the index")
        return known

    inbox = None if config.inbox is None else config.inbox.folder
    labels = labels_for(config, bundle.classes.names)
    try:
        dataset = read_device(labels, inbox, hash_of)
    except DataError:
        if not unread:
            raise
        return _Found(labels=labels, unread=len(unread))  # before the agent has read the first one
    pictures = (*dataset.pictures, *dataset.unlabelled)
    return _Found(
        pictures,
        frozenset(picture.hash for picture in pictures),
        {picture.path: index.came_at(str(picture.path)) for picture in pictures},
        known_sides(config.data, dataset, index),
        labels,
        len(unread),
    )


def _with_trouble(pictures: Pictures, reason: str) -> Pictures:
    return Pictures(
        pictures.entries, pictures.by_id, pictures.classes, pictures.unread, f"{reason}."
    )


def _state(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ino
