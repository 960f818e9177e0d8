"""Features of a device's pictures, split into training, validation and test sides by hash."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedclip_edge import log
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.errors import DataError
from fedclip_edge.processes.systemd import SYSTEMD
from fedclip_edge.records import Features
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.datasets import Picture, Split, read_folder, split
from fedclip_edge.vision.embedding import Embedded, Progress, embed_pictures
from fedclip_edge.vision.lazy_encoder import LazyEncoder
from fedclip_edge.vision.picture_files import LeftOut, Skipped, examples
from fedclip_edge.vision.picture_index import PictureIndex

CACHE = "features.sqlite"  # in state_dir


@dataclass(frozen=True, eq=False)
class DeviceFeatures:
    """A device's features by side, and the cost of computing them.

    Each side holds raw vectors, float32 (N, D), and labels, int64 (N,). `train` is empty without
    the role "train", `test` without the role "evaluate".
    """

    train: Features
    validation: Features
    test: Features
    test_pictures: tuple[Picture, ...]  # N of them, in the order of `test`
    encoded: int  # distinct pictures that were encoded, not read from the cache
    skipped: int  # pictures, and folders of pictures, that could not be read
    encode_s: float  # seconds for all sides, including reads from the cache
    pictures: tuple[Picture, ...] = ()  # of all sides, as they were found in the folder


def prepare_features(
    config: AgentConfig,
    bundle: Bundle,
    progress: Progress | None,
    index: PictureIndex | None = None,
    before: DeviceFeatures | None = None,
) -> DeviceFeatures:
    """Compute the device's features, or read them from its cache.

    With `index`, a file that has not changed is not read. If the folder still has the pictures of
    `before`, that is returned.

    `progress` is called after each batch with two counts of distinct pictures: those with features
    so far, and all. Raises DataError if the picture folder or the cache cannot be used, or if a
    role of the device has no pictures; errors of the encoder are passed on.
    """
    index = index or PictureIndex()
    dataset = read_folder(config.data.folder, bundle.classes.names, index.hash_of)
    index.forget_others()
    if before is not None and dataset.pictures == before.pictures:
        return before
    sides = split(dataset, config.data)
    began = time.monotonic()
    embedded, damaged = _embed_sides(config, bundle, sides, progress)
    encode_s = time.monotonic() - began
    left_out = dataset.left_out
    for side in embedded.values():
        left_out += LeftOut(skipped=side.skipped)
    _log_left_out(config, left_out, sides)
    _check_roles(config, embedded)
    encoded = sum(side.encoded for side in embedded.values())
    log.event(
        "features_ready",
        train=len(embedded["train"].pictures),
        test=len(embedded["test"].pictures),
        encoded=encoded,
        cached=sum(side.cached for side in embedded.values()),
        damaged=damaged or None,
        skipped=len(left_out.skipped),
        seconds=encode_s,
        provider=config.encoder.label,
    )
    return DeviceFeatures(
        train=_features(embedded["train"], bundle),
        validation=_features(embedded["validation"], bundle),
        test=_features(embedded["test"], bundle),
        test_pictures=embedded["test"].pictures,
        encoded=encoded,
        skipped=len(left_out.skipped),
        encode_s=encode_s,
        pictures=dataset.pictures,
    )


def _embed_sides(
    config: AgentConfig, bundle: Bundle, sides: Split, progress: Progress | None
) -> tuple[dict[str, Embedded], int]:
    """Embed the pictures of each side; a side that no role needs stays empty.

    Also returns the number of cached features that were damaged and are computed again.
    """
    wanted = {
        "train": sides.train if "train" in config.roles else (),
        "validation": sides.validation,
        "test": sides.test if "evaluate" in config.roles else (),
    }
    counts = {side: len({picture.hash for picture in wanted[side]}) for side in wanted}
    overall = _Overall(progress or _tell_nobody, sum(counts.values()))
    embedded: dict[str, Embedded] = {}
    encoder = LazyEncoder(bundle, config.encoder)  # local, so that its memory is freed on return
    with FeatureCache(config.state_dir / CACHE) as cache:
        for side, pictures in wanted.items():
            overall.reached += counts[side]
            embedded[side] = embed_pictures(
                pictures,
                encoder,
                cache,
                bundle.manifest.preprocessing,
                batch_size=config.encoder.batch_size,
                progress=overall.tell,
            )
        overall.end()
        return embedded, cache.damaged


@dataclass(eq=False)
class _Overall:
    """Turns counts of one side's missing pictures into counts of the pictures of all sides."""

    progress: Progress
    total: int
    reached: int = 0  # pictures of the sides so far, with the one that is being encoded
    _told: int | None = None

    def tell(self, done: int, missing: int) -> None:
        self._told = self.reached - missing + done
        self.progress(self._told, self.total)
        SYSTEMD.status(f"encodes its pictures: {self._told} of {self.total} done")
        SYSTEMD.turn()

    def end(self) -> None:
        """Tell the end, if there was a beginning and the last sides were in the cache."""
        if self._told not in (None, self.total):
            self.progress(self.total, self.total)


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
        for name in sides.classes_without_test:
            log.event("class_without_test_pictures", class_name=name)


def _examples(entries: Sequence[Skipped]) -> Iterator[tuple[Skipped, int | None]]:
    """Yield a few entries, each with None; the last one with the number of further entries."""
    some = examples(entries)
    for place, entry in enumerate(some, start=1):
        yield entry, (len(entries) - place or None) if place == len(some) else None


def _check_roles(config: AgentConfig, embedded: Mapping[str, Embedded]) -> None:
    """Raise DataError if a role of the device has no pictures."""
    for side, role in (("train", "train"), ("test", "evaluate")):
        if role in config.roles and not embedded[side].pictures:
            raise DataError(
                f"{config.data.folder} has no readable {side} pictures, but device {config.id} "
                f"has the role {role!r}; add pictures, or change the shares under [data]"
            )


def _features(embedded: Embedded, bundle: Bundle) -> Features:
    return Features(embedded.vectors, embedded.labels, bundle.manifest.encoder_id)
