"""Reader of a folder of pictures: each is encoded once and split by its hash, as on an agent."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedclip_edge.config.agent import DataConfig, EncoderConfig
from fedclip_edge.errors import DataError
from fedclip_edge.simulating.pool import TEST, TRAIN, VALIDATION, Pool
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.class_folders import find_domains
from fedclip_edge.vision.datasets import Dataset, Picture, read_folder, split
from fedclip_edge.vision.embedding import Cache, Progress, embed_pictures
from fedclip_edge.vision.lazy_encoder import LazyEncoder
from fedclip_edge.vision.picture_files import LeftOut


def read_pictures(
    folder: Path, bundle: Bundle, config: EncoderConfig, cache: Cache, progress: Progress | None
) -> tuple[Pool, LeftOut]:
    """Read `folder`/CLASS/* or `folder`/DOMAIN/CLASS/*; return the pool, and what is not in it.

    Raises the errors of `read_folder`, DataError if no
    picture can be read, and BundleError if the encoder fails.
    """
    datasets, left_out = _datasets(folder, bundle.classes.names)
    sides: list[tuple[Picture, int, int]] = []  # picture, side, index of its domain
    for place, dataset in enumerate(datasets.values()):
        halves = split(dataset, DataConfig(folder))
        for side, pictures in (
            (TRAIN, halves.train),
            (VALIDATION, halves.validation),
            (TEST, halves.test),
        ):
            sides += [(picture, side, place) for picture in pictures]
        left_out += dataset.left_out
    embedded = embed_pictures(
        [picture for picture, _, _ in sides],
        LazyEncoder(bundle, config),
        cache,
        bundle.manifest.preprocessing,
        config,
        progress=progress,
    )
    left_out += LeftOut(skipped=embedded.skipped)
    broken = {entry.path for entry in embedded.skipped}
    kept = [entry for entry in sides if entry[0].path not in broken]
    if not kept:
        raise DataError(
            f"none of the pictures in {folder} can be read{left_out.reasons()}; give another folder"
        )
    return Pool(
        classes=bundle.classes,
        encoder_id=bundle.manifest.encoder_id,
        vectors=embedded.vectors,
        labels=embedded.labels,
        sides=np.array([side for _, side, _ in kept], np.uint8),
        domains=tuple(name for name in datasets if name),
        domain_of=np.array([place for _, _, place in kept], np.int64),
    ), left_out


def _datasets(folder: Path, classes: tuple[str, ...]) -> tuple[dict[str, Dataset], LeftOut]:
    """Read one dataset for each domain; the key is "" if the class folders are in `folder`.

    Also returns what is in none of them.
    """
    found = find_domains(folder, classes)
    if found.class_folders or not found.domains:
        return {"": read_folder(folder, classes)}, LeftOut()
    return {domain.name: read_folder(domain, classes) for domain in found.domains}, found.left_out
