"""Labelled pictures to features: the cache first, the encoder for what it lacks.

Laws: each distinct picture is decoded and encoded once; a picture that cannot be decoded is
skipped, counted and named; every batch is on disk before the next one is encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedclip_edge.errors import DataError
from fedclip_edge.records import F32, I64
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.datasets import Picture, Skipped
from fedclip_edge.vision.pictures import Preprocessing, decode, picture_hash
from fedclip_edge.vision.prefetch import prefetch


class PictureEncoder(Protocol):
    """Of an encoder (encoder.py, lazy_encoder.py), what is asked here."""

    @property
    def dim(self) -> int | None:
        """D; None where it is not known before the first picture."""

    @property
    def feature_key(self) -> str:
        """Under which its features may be cached."""

    def embed(self, pixels: F32) -> F32:
        """Raw features [N, D] of float32 `pixels` [N, 3, S, S]."""


Progress = Callable[[int, int], None]  # distinct pictures done, distinct pictures to encode


@dataclass(frozen=True, eq=False)
class Embedded:
    """The raw features of the pictures that could be used, in the order they were given."""

    vectors: F32  # (N, D)
    labels: I64  # (N,)
    pictures: tuple[Picture, ...]  # N of them
    encoded: int  # distinct pictures that went through the encoder now
    cached: int  # distinct pictures whose features were there already
    skipped: tuple[Skipped, ...]


def embed_pictures(
    pictures: Sequence[Picture],
    encoder: PictureEncoder,
    cache: FeatureCache,
    preprocessing: Preprocessing,
    batch_size: int = 8,
    *,
    progress: Progress | None = None,
) -> Embedded:
    """Features of `pictures`, from the cache where it has them.

    Raises DataError where the cache cannot be used, and what the encoder raises; what was encoded
    before stays in the cache.
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


Decoded = tuple[list[Picture], F32, dict[str, str]]  # pictures, their pixels, reasons by hash


def _decoded(
    missing: Sequence[Picture], preprocessing: Preprocessing, batch_size: int
) -> Iterator[Decoded]:
    """Batches of pixels; the next one is decoded while the caller encodes this one."""
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
            if picture_hash(data) != picture.hash:  # its features would be filed under a lie
                raise DataError("it changed since the folder was read")
            pixels.append(decode(data, preprocessing))
            readable.append(picture)
        except DataError as error:
            reasons[picture.hash] = str(error)
        except OSError as error:
            reasons[picture.hash] = f"cannot be read: {error.strerror or error}"
    stacked = np.stack(pixels) if pixels else np.zeros((0, 3, side, side), np.float32)
    return readable, stacked, reasons


def _stack(vectors: list[F32], encoder: PictureEncoder, cache: FeatureCache) -> F32:
    widths = {len(vector) for vector in vectors}
    if len(widths) > 1 or (encoder.dim is not None and widths - {encoder.dim}):
        raise DataError(
            f"the feature cache {cache.path} holds features of width {sorted(widths)} for an "
            f"encoder of width {encoder.dim}; delete it: the features are computed again"
        )
    if not vectors:
        return np.zeros((0, encoder.dim or 0), np.float32)
    stacked = np.stack(vectors)  # (N, D)
    if not np.isfinite(stacked).all():
        raise DataError(f"the feature cache {cache.path} is damaged (NaN); delete it")
    return stacked
