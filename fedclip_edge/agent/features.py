"""Pictures of a device and their features, split into training, validation and test sides by hash.

The agent's main process has the pictures (`prepare_pictures`), and no features: they are in the
cache. The process that trains reads them (`read_features`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from fedclip_edge import log
from fedclip_edge.agent.encoding import Encode, Encoded
from fedclip_edge.agent.feature_cache import with_cache
from fedclip_edge.agent.grouping import groups_of, warn_of_near_copies
from fedclip_edge.agent.label_store import labels_in
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.processes.systemd import SYSTEMD
from fedclip_edge.records import I64, Features
from fedclip_edge.vision.bundle import Bundle, key_of
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.datasets import Dataset, Picture, Split, split
from fedclip_edge.vision.device_pictures import read_device
from fedclip_edge.vision.embedding import Progress, embed_pictures
from fedclip_edge.vision.labels import Labels
from fedclip_edge.vision.lazy_encoder import LazyEncoder
from fedclip_edge.vision.picture_files import LeftOut, Skipped, examples
from fedclip_edge.vision.picture_index import PictureIndex

CACHE = "features.sqlite"  # in state_dir
_AT_ONCE = 1000  # features; this limits the memory
_TURN_S = 0.1  # for which files are read at once
# Then the caller's duties begin, one of which lists the folder as well. Tens of thousands of files
# that have not changed take less.
_FIRST_TURN_S = 2.0


@dataclass(frozen=True)
class Sides:
    """Labelled pictures with features, by side.

    `train` is empty without the role "train", `test` without the role "evaluate".
    """

    train: tuple[Picture, ...]
    validation: tuple[Picture, ...]
    test: tuple[Picture, ...]


@dataclass(frozen=True)
class DevicePictures:
    """A device's pictures that have features, and the cost of computing them."""

    sides: Sides
    encoded: int  # distinct pictures that were encoded, not read from the cache
    skipped: int  # pictures, and folders of pictures, that could not be read
    encode_s: float  # seconds for all sides, including reads from the cache
    found: tuple[Picture, ...] = ()  # of all sides, as they were found in the folder
    unlabelled: tuple[Picture, ...] = ()  # with and without features
    unused: tuple[Skipped, ...] = ()  # labels, files and folders that do not count
    is_whole: bool = True  # False if files vanished before they were encoded, as with their folder

    def labels(self, side: str) -> I64:
        """The labels, int64 (N,), of "train", "validation" or "test"."""
        return _labels(getattr(self.sides, side))


@dataclass(frozen=True, eq=False)
class DeviceFeatures:
    """A device's features by side: raw vectors, float32 (N, D), and labels, int64 (N,)."""

    train: Features
    validation: Features
    test: Features
    test_pictures: tuple[Picture, ...]  # N of them, in the order of `test`


def _do_nothing() -> None:
    """There is nothing else to do."""


@dataclass(eq=False)
class _InTurns:
    """Reading of files by `index`, in turns with the caller's other duties."""

    index: PictureIndex
    meanwhile: Callable[[], object]

    def __post_init__(self) -> None:
        self._turn_at = time.monotonic() + _FIRST_TURN_S

    def hash_of(self, path: Path) -> str:
        if time.monotonic() >= self._turn_at:
            self.meanwhile()
            self._turn_at = time.monotonic() + _TURN_S
        return self.index.hash_of(path)


def prepare_pictures(
    config: AgentConfig,
    bundle: Bundle,
    encode: Encode,
    progress: Progress | None,
    index: PictureIndex | None = None,
    before: DevicePictures | None = None,
    meanwhile: Callable[[], object] = _do_nothing,
) -> DevicePictures:
    """Find the device's pictures, and have `encode` put the features of new ones into the cache.

    With `index`, a file that has not changed is not read. If the folder still has the pictures of
    `before`, that is returned; if only the unlabelled ones, or what does not count, are others, it
    is returned with these, and what is new among the latter is logged. What vanished for `before`
    is tried again.

    `progress` is called after each batch with two counts of distinct pictures: those with features
    so far, and all. If files are read for long, `meanwhile` is called several times a second.
    Raises DataError if the picture folder or the cache cannot be used; errors of `encode` are
    passed on.
    """
    index = index or PictureIndex()
    inbox = None if config.inbox is None else config.inbox.folder
    labels = labels_for(config, bundle.classes.names)
    dataset = read_device(labels, inbox, _InTurns(index, meanwhile).hash_of)
    index.save()
    if before is not None and before.is_whole and dataset.pictures == before.found:
        return _with_others(before, dataset)
    its_split = split(dataset, config.data, groups_of(config.data, dataset, index))
    wanted = Sides(
        its_split.train if "train" in config.roles else (),
        its_split.validation,
        its_split.test if "evaluate" in config.roles else (),
    )
    distinct = {picture.hash: picture for picture in _all(wanted)}
    began = time.monotonic()
    missing, damaged = missing_features(config, bundle, distinct)
    overall = _Overall(progress or _tell_nobody, len(distinct), len(missing))
    made = encode(missing, overall.tell) if missing else Encoded(0, {})
    encode_s = time.monotonic() - began
    sides = Sides(
        *(
            tuple(picture for picture in side if picture.hash not in made.skipped)
            for side in (wanted.train, wanted.validation, wanted.test)
        )
    )
    broken = [picture for picture in _all(wanted) if picture.hash in made.skipped]
    left_out = dataset.left_out + LeftOut(
        skipped=tuple(Skipped(picture.path, made.skipped[picture.hash]) for picture in broken)
    )
    _log_left_out(config, left_out, its_split)
    for entry, more in _examples(labels.overruled):
        log.event("labels_disagree", picture=entry.path, reason=entry.reason, more=more)
    log.event(
        "features_ready",
        train=len(sides.train),
        test=len(sides.test),
        encoded=made.encoded,
        cached=len(distinct) - len(missing),
        damaged=damaged or None,
        skipped=len(left_out.skipped),
        unlabelled=len({picture.hash for picture in dataset.unlabelled}) or None,
        seconds=encode_s,
        provider=config.encoder.label,
    )
    return DevicePictures(
        sides=sides,
        encoded=made.encoded,
        skipped=len(left_out.skipped),
        encode_s=encode_s,
        found=dataset.pictures,
        unlabelled=dataset.unlabelled,
        unused=dataset.left_out.unused,
        is_whole=all(picture.path.exists() for picture in broken),
    )


def _with_others(before: DevicePictures, dataset: Dataset) -> DevicePictures:
    """Return `before` with what else the folder has now; a person may have added a side-car."""
    unused = dataset.left_out.unused
    if (dataset.unlabelled, unused) == (before.unlabelled, before.unused):
        return before
    known = set(before.unused)
    for entry, more in _examples([one for one in unused if one not in known]):
        log.event("not_used", path=entry.path, reason=entry.reason, more=more)
    return replace(before, unlabelled=dataset.unlabelled, unused=unused)


def labels_for(config: AgentConfig, classes: Sequence[str]) -> Labels:
    """The labels of the device's pictures."""
    return Labels(
        config.data.folder,
        classes,
        config.data.labels,
        functools.partial(labels_in, config.state_dir),
    )


def read_features(config: AgentConfig, bundle: Bundle, sides: Sides) -> DeviceFeatures:
    """Read the features of these pictures from the device's cache.

    A feature that was damaged or deleted meanwhile is computed again here; a picture that has none
    after that is left out. Raises the errors of `embed_pictures`.
    """
    encoder = LazyEncoder(bundle, config.encoder)  # local, so that its memory is freed on return

    def read(cache: FeatureCache) -> tuple[dict[str, Features], tuple[Picture, ...]]:
        found: dict[str, Features] = {}
        pictures: tuple[Picture, ...] = ()
        for side in (one.name for one in fields(Sides)):
            embedded = embed_pictures(
                getattr(sides, side),
                encoder,
                cache,
                bundle.manifest.preprocessing,
                config.encoder,
            )
            encoder_id = bundle.manifest.encoder_id
            found[side] = Features(embedded.vectors, embedded.labels, encoder_id)
            pictures = embedded.pictures  # at last, those of the test side
        return found, pictures

    found, test_pictures = with_cache(config.state_dir / CACHE, read)
    if config.data.group_by == "none":
        warn_of_near_copies(found["train"].vectors, found["test"].vectors)
    return DeviceFeatures(**found, test_pictures=test_pictures)


def _all(sides: Sides) -> tuple[Picture, ...]:
    return (*sides.train, *sides.validation, *sides.test)


def _labels(pictures: Sequence[Picture]) -> I64:
    return np.array([picture.label for picture in pictures], np.int64)


def missing_features(
    config: AgentConfig, bundle: Bundle, pictures: Mapping[str, Picture]
) -> tuple[list[Picture], int]:
    """Find the pictures, by hash, that are not in the cache; and count damaged features.

    A cache that cannot be used is made anew (`feature_cache.py`).
    """

    def look(cache: FeatureCache) -> tuple[list[Picture], int]:
        key, missing = key_of(bundle, config.encoder), list[Picture]()
        hashes = list(pictures)
        for start in range(0, len(hashes), _AT_ONCE):
            some = hashes[start : start + _AT_ONCE]
            cached = cache.get(some, key)
            missing += (pictures[one] for one in some if one not in cached)
        return missing, cache.damaged

    return with_cache(config.state_dir / CACHE, look)


@dataclass(eq=False)
class _Overall:
    """Turns counts of missing pictures into counts of all pictures."""

    progress: Progress
    total: int
    missing: int
    _told: int = -1

    def tell(self, done: int, _missing: int) -> None:
        now = self.total - self.missing + done
        if now <= self._told:
            return
        self._told = now
        self.progress(now, self.total)
        SYSTEMD.status(f"encodes its pictures: {now} of {self.total} done")
        SYSTEMD.turn()


def _tell_nobody(_done: int, _total: int) -> None:
    """Nobody asked for the progress."""


def _log_left_out(config: AgentConfig, left_out: LeftOut, sides: Split) -> None:
    """Log what is left out, a few of each kind by name, and classes without test pictures."""
    if left_out.others:
        log.event("files_ignored", count=len(left_out.others), kinds=left_out.kinds())
    for entry, more in _examples(left_out.unused):
        log.event("not_used", path=entry.path, reason=entry.reason, more=more)
    for entry, more in _examples(left_out.skipped):
        log.event("picture_skipped", picture=entry.path, reason=entry.reason, more=more)
    if "evaluate" in config.roles:
        for name in sides.classes_without_test if sides.test else ():
            log.event("class_without_test_pictures", class_name=name)


def _examples(entries: Sequence[Skipped]) -> Iterator[tuple[Skipped, int | None]]:
    """Yield a few entries, each with None; the last one with the number of further entries."""
    some = examples(entries)
    for place, entry in enumerate(some, start=1):
        yield entry, (len(entries) - place or None) if place == len(some) else None
