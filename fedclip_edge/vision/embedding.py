"""Features of labelled pictures, from the cache or else from the encoder.

Laws:

- Each distinct picture is decoded and encoded at most once.
- A picture that cannot be decoded is skipped, counted and named.
- The features of a batch are on disk before the next batch is encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fedclip_edge.errors import DataError
from fedclip_edge.records import F32, I64
from fedclip_edge.vision.datasets import Picture
from fedclip_edge.vision.picture_files import Skipped, unreadable
from fedclip_edge.vision.pictures import Preprocessing, decode, picture_hash
from fedclip_edge.vision.prefetch import prefetch


class PictureEncoder(Protocol):
    """The part of an encoder that this module uses; see encoder.py and lazy_encoder.py."""

    @property
    def dim(self) -> int | None:
        """Feature width D; None if it is not known before the first picture."""

    @property
    def feature_key(self) -> str:
        """Key under which the features are cached."""

    def embed(self, pixels: F32) -> F32:
        """Return raw features float32 (N, D) of `pixels` float32 (N, 3, S, S)."""


class Cache(Protocol):
    """The part of a feature cache that this module uses; see cache.py and shared_cache.py."""

    @property
    def path(self) -> Path:
        """The file, for error messages."""

    def get(self, hashes: Sequence[str], feature_key: str) -> dict[str, F32]:
        """Return the cached raw features, float32 (D,) each, by picture hash."""

    def put(self, features: Mapping[str, F32], feature_key: str) -> None:
        """Store raw features, float32 (D,) each, by picture hash."""


Progress = Callable[[int, int], None]  # distinct pictures done, distinct pictures to encode


@dataclass(frozen=True, eq=False)
class Embedded:
    """Raw features of the pictures that could be used, in the given order."""

    vectors: F32  # (N, D)
    labels: I64  # (N,)
    pictures: tuple[Picture, ...]  # N of them
    encoded: int  # distinct pictures that were encoded now
    cached: int  # distinct pictures whose features were in the cache
    skipped: tuple[Skipped, ...]


def embed_pictures(
    pictures: Sequence[Picture],
    encoder: PictureEncoder,
    cache: Cache,
    preprocessing: Preprocessing,
    batch_size: int = 8,
    *,
    progress: Progress | None = None,
) -> Embedded:
    """Return the raw features float32 (N, D) and labels int64 (N,) of `pictures`.

    Features that are not cached are computed in batches of `batch_size` pictures and stored.
    `progress` is called after each batch. N counts the pictures that could be decoded; the others
    are in `skipped`.

    Raises DataError if the cache cannot be used, or if its features have another width or are not
    finite; and the errors of `encoder.embed`. After an error, the batches that were encoded before
    stay in the cache.
    """
    distinct: dict[str, Picture] = {}
    for picture in pictures:
        distinct.setdefault(picture.hash, picture)
    key = encoder.feature_key
    features = cache.get(list(distinct), key)
    missing = [picture for picture in distinct.values() if picture.hash not in features]
    cached, done = len(features), 0
    reasons: dict[str, str] = {}
    for batch, pixels, broken in _decoded(missing, preprocessing, batch_size):
        if batch:
            vectors = encoder.embed(pixels)  # (B, D)
            fresh = {picture.hash: vector for picture, vector in zip(batch, vectors, strict=True)}
            cache.put(fresh, key)
            features.update(fresh)
        reasons.update(broken)
        done += len(batch) + len(broken)
        if progress:
            progress(done, len(missing))
    kept = tuple(picture for picture in pictures if picture.hash in features)
    skipped = (picture for picture in pictures if picture.hash in reasons)
    return Embedded(
        vectors=_stack([features[picture.hash] for picture in kept], encoder, cache),
        labels=np.array([picture.label for picture in kept], dtype=np.int64),
        pictures=kept,
        encoded=len(missing) - len(reasons),
        cached=cached,
        skipped=tuple(Skipped(picture.path, reasons[picture.hash]) for picture in skipped),
    )


Decoded = tuple[list[Picture], F32, dict[str, str]]  # pictures, pixels, errors by hash


def _decoded(
    missing: Sequence[Picture], preprocessing: Preprocessing, batch_size: int
) -> Iterator[Decoded]:
    """Yield batches of pixels; the next one is decoded while the caller encodes this one."""
    batches = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)]
    return prefetch(lambda batch: _decode(batch, preprocessing), batches)


def _decode(batch: Sequence[Picture], preprocessing: Preprocessing) -> Decoded:
    side = preprocessing.image_size
    pixels: list[F32] = []
    readable: list[Picture] = []
    reasons: dict[str, str] = {}
    for picture in batch:
        try:
            data = picture.path.read_bytes()
            if picture_hash(data) != picture.hash:  # do not cache it under the old hash
                raise DataError("it changed after the folder was read")
            pixels.append(decode(data, preprocessing))
            readable.append(picture)
        except DataError as error:
            reasons[picture.hash] = str(error)
        except OSError as error:
            reasons[picture.hash] = unreadable(error)
    stacked = np.stack(pixels) if pixels else np.zeros((0, 3, side, side), np.float32)
    return readable, stacked, reasons


def _stack(vectors: list[F32], encoder: PictureEncoder, cache: Cache) -> F32:
    widths = {len(vector) for vector in vectors}
    if len(widths) > 1 or (encoder.dim is not None and widths - {encoder.dim}):
        raise DataError(
            f"the feature cache {cache.path} has features of width {sorted(widths)}, but the "
            f"encoder's width is {encoder.dim}; delete it, and the features are computed again"
        )
    if not vectors:
        return np.zeros((0, encoder.dim or 0), np.float32)
    stacked = np.stack(vectors)  # (N, D)
    if not np.isfinite(stacked).all():
        raise DataError(
            f"the feature cache {cache.path} is damaged (NaN or infinity); delete it, and the "
            "features are computed again"
        )
    return stacked
