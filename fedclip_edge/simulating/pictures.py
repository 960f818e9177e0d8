"""Reader of a folder of pictures: each is encoded once and split by its hash, as on an agent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedclip_edge.config import DataConfig, EncoderConfig
from fedclip_edge.errors import DataError
from fedclip_edge.records import normalized_name
from fedclip_edge.simulating.pool import TEST, TRAIN, VALIDATION, Pool
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.datasets import Dataset, Picture, Skipped, read_folder, split
from fedclip_edge.vision.embedding import Cache, Progress, embed_pictures
from fedclip_edge.vision.lazy_encoder import LazyEncoder


def read_pictures(
    folder: Path, bundle: Bundle, config: EncoderConfig, cache: Cache, progress: Progress | None
) -> tuple[Pool, tuple[Skipped, ...]]:
    """Read `folder`/CLASS/* or `folder`/DOMAIN/CLASS/*; return the pool and the skipped files.

    Raises the errors of `read_folder`, DataError if no
    picture can be read, and BundleError if the encoder fails.
    """
    datasets = _datasets(folder, bundle.classes.names)
    sides: list[tuple[Picture, int, int]] = []  # picture, side, index of its domain
    skipped: list[Skipped] = []
    for place, dataset in enumerate(datasets.values()):
        halves = split(dataset, DataConfig(folder))
        for side, pictures in (
            (TRAIN, halves.train),
            (VALIDATION, halves.validation),
            (TEST, halves.test),
        ):
            sides += [(picture, side, place) for picture in pictures]
        skipped += dataset.skipped
    embedded = embed_pictures(
        [picture for picture, _, _ in sides],
        LazyEncoder(bundle, config),
        cache,
        bundle.manifest.preprocessing,
        batch_size=config.batch_size,
        progress=progress,
    )
    broken = {entry.path for entry in embedded.skipped}
    kept = [entry for entry in sides if entry[0].path not in broken]
    if not kept:
        raise DataError(f"none of the pictures in {folder} can be read; give another folder")
    return Pool(
        classes=bundle.classes,
        encoder_id=bundle.manifest.encoder_id,
        vectors=embedded.vectors,
        labels=embedded.labels,
        sides=np.array([side for _, side, _ in kept], np.uint8),
        domains=tuple(name for name in datasets if name),
        domain_of=np.array([place for _, _, place in kept], np.int64),
    ), (*skipped, *embedded.skipped)


def _datasets(folder: Path, classes: tuple[str, ...]) -> Mapping[str, Dataset]:
    """Read one dataset for each domain; the key is "" if the class folders are in `folder`."""
    inside = sorted(
        entry
        for entry in (folder.iterdir() if folder.is_dir() else ())
        if entry.is_dir() and not entry.name.startswith(".")
    )

    def is_class(path: Path) -> bool:
        return normalized_name(path.name) in classes

    nested = [e for e in inside if any(s.is_dir() and is_class(s) for s in e.iterdir())]
    if not nested or any(map(is_class, inside)):
        return {"": read_folder(folder, classes)}
    return {entry.name: read_folder(entry, classes) for entry in inside}
