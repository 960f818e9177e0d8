"""The review of a device from its files, and the files that it is written to.

    STATE_DIR/review/label-next.csv          pictures to label, the most useful first
    STATE_DIR/review/looks-mislabelled.csv   labels to check, the most doubtful first
    STATE_DIR/review/classes.csv             classes, those that need pictures first

The device's agent may run at the same time.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, fields
from pathlib import Path

from fedclip_edge.agent.features import CACHE, labels_for
from fedclip_edge.agent.label_store import confirmed_in
from fedclip_edge.agent.model_in_use import model_choice
from fedclip_edge.agent.rescan import INDEX
from fedclip_edge.agent.review import (
    ClassNeed,
    Doubtful,
    Review,
    Reviewed,
    ToLabel,
    make_review,
)
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.storage import atomic
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.datasets import Picture
from fedclip_edge.vision.device_pictures import read_device
from fedclip_edge.vision.embedding import Progress, embed_pictures
from fedclip_edge.vision.lazy_encoder import LazyEncoder
from fedclip_edge.vision.picture_files import Skipped
from fedclip_edge.vision.picture_index import PictureIndex
from fedclip_edge.vision.provider_choice import kept_provider

FOLDER = "review"  # in state_dir


def review_device(
    config: AgentConfig, bundle: Bundle, most: int, progress: Progress | None = None
) -> tuple[Review, tuple[Skipped, ...]]:
    """Review the device's pictures; also return those that cannot be decoded.

    A picture without a cached feature is encoded, and its feature goes to the device's cache.
    `progress` is called as `embed_pictures` does. Raises DataError if the folders or the cache
    cannot be used, BundleError and ConfigError as the encoder does.
    """
    inbox = None if config.inbox is None else config.inbox.folder
    labels = labels_for(config, bundle.classes.names)
    with _index_of(config) as index:
        dataset = read_device(labels, inbox, index.hash_of)
    pictures = _distinct((*dataset.pictures, *dataset.unlabelled))
    config.state_dir.mkdir(parents=True, exist_ok=True)
    encoder = kept_provider(bundle, config.encoder, config.state_dir)
    with FeatureCache(config.state_dir / CACHE) as cache:
        embedded = embed_pictures(
            pictures,
            LazyEncoder(bundle, encoder),
            cache,
            bundle.manifest.preprocessing,
            encoder,
            progress=progress,
        )
    count = sum(picture.label >= 0 for picture in embedded.pictures)
    sides = [
        Reviewed(embedded.pictures[rows], embedded.vectors[rows])
        for rows in (slice(count), slice(count, None))
    ]
    review = make_review(
        sides[0],
        sides[1],
        bundle.classes,
        model_choice(config, bundle).current,
        most=most,
        least=config.min_per_class,
        confirmed=confirmed_in(config.state_dir),
    )
    return review, embedded.skipped


def write_review(state_dir: Path, review: Review) -> Path:
    """Write the three files and return their folder; raises OSError."""
    folder = state_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind, rows in (
        ("label-next", ToLabel, review.label_next),
        ("looks-mislabelled", Doubtful, review.looks_mislabelled),
        ("classes", ClassNeed, review.classes),
    ):
        atomic.write_file(folder / f"{name}.csv", _csv(kind, rows))
    return folder


@contextmanager
def _index_of(config: AgentConfig) -> Iterator[PictureIndex]:
    """The index of the agent, if there is one, so that unchanged pictures are not read."""
    file = config.state_dir / INDEX
    index = PictureIndex(file=file if file.exists() else None)
    index.open()
    with closing(index):
        yield index


def _csv(kind: type, rows: Sequence[ToLabel | Doubtful | ClassNeed]) -> bytes:
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(field.name for field in fields(kind))
    table.writerows(asdict(row).values() for row in rows)
    return text.getvalue().encode(errors="surrogateescape")


def _distinct(pictures: Sequence[Picture]) -> list[Picture]:
    """The first picture of each hash; those with a label come first."""
    found: dict[str, Picture] = {}
    for picture in sorted(pictures, key=lambda picture: picture.label < 0):
        found.setdefault(picture.hash, picture)
    return list(found.values())
