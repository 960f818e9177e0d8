"""Features of labelled pictures, from the cache or else from the encoder.

Laws:

- Each distinct picture is decoded and encoded at most once.
- A picture that cannot be decoded is skipped, counted and named.
- The features of a batch are on disk before `progress` counts them. If the program is killed, at
  most the batches that its threads have are encoded again.
- At most one batch of pixels exists for each thread (pace.py), for any number of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import DataError
from fedclip_edge.records import BOOL, F32, I64
from fedclip_edge.vision.cache import Rows
from fedclip_edge.vision.cache_file import UnusableCacheError
from fedclip_edge.vision.datasets import Picture
from fedclip_edge.vision.pace import pace_of
from fedclip_edge.vision.picture_bytes import read_picture
from fedclip_edge.vision.picture_files import Skipped, unreadable
from fedclip_edge.vision.pictures import Preprocessing, decode, picture_hash


class PictureEncoder(Protocol):
    """The part of an encoder that this module uses; see encoder.py and lazy_encoder.py."""

    @property
    def dim(self) -> int | None:
        """Feature width D; None if it is not known before the first picture."""

    @property
    def feature_key(self) -> str:
        """Key under which the features are cached."""

    def embed(self, pixels: F32) -> F32:
        """Return raw features float32 (N, D) of `pixels` float32 (N, 3, S, S).

        Several threads may call it at the same time.
        """


class Cache(Protocol):
    """The part of a feature cache that this module uses; see cache.py and shared_cache.py."""

    @property
    def path(self) -> Path:
        """The file, for error messages."""

    def read(self, hashes: Sequence[str], feature_key: str) -> Rows:
        """Return the cached raw features of these picture hashes as one array."""

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


@dataclass(frozen=True, eq=False)
class _Batch:
    """Features of one batch of pictures, and reasons where there is none."""

    hashes: tuple[str, ...]  # B of them
    vectors: F32 | None  # (B, D); None if B is 0
    reasons: Mapping[str, str]  # why the others cannot be used, by picture hash


def embed_pictures(
    pictures: Sequence[Picture],
    encoder: PictureEncoder,
    cache: Cache,
    preprocessing: Preprocessing,
    config: EncoderConfig,
    *,
    progress: Progress | None = None,
) -> Embedded:
    """Return the raw features float32 (N, D) and labels int64 (N,) of `pictures`.

    Features that are not cached are computed in batches, in threads, and stored. `config` gives the
    number of threads, the size of a batch and the way of decoding. It is the one that `encoder` was
    made with. `progress` is called after each batch. N counts the
    pictures that could be decoded; the others are in `skipped`.

    Raises the errors of the cache, UnusableCacheError if its features have another width or are not
    finite, and the errors of `encoder.embed`. After an error, the batches that were encoded before
    stay in the cache.
    """
    distinct: dict[str, Picture] = {}
    for picture in pictures:
        distinct.setdefault(picture.hash, picture)
    place = {picture: row for row, picture in enumerate(distinct)}
    key = encoder.feature_key
    known = cache.read(list(distinct), key)
    found = known.found  # (n,) of n distinct pictures
    vectors = known.vectors  # (n, D)
    if encoder.dim is not None:
        vectors = _of_width(encoder.dim, vectors, found, cache)
    _check_finite(vectors, cache)
    cached = int(found.sum())
    missing = [picture for picture in distinct.values() if not found[place[picture.hash]]]
    reasons: dict[str, str] = {}
    done = 0

    pace = pace_of(config, len(missing))

    def encoded(batch: Sequence[Picture]) -> _Batch:
        pixels = {one.hash: _decode(one, preprocessing, fast=config.fast) for one in batch}
        usable = {picture: got for picture, got in pixels.items() if not isinstance(got, str)}
        why = {picture: got for picture, got in pixels.items() if isinstance(got, str)}
        if not usable:
            return _Batch((), None, why)
        return _Batch(
            tuple(usable), pace.encode(encoder.embed, np.stack(list(usable.values()))), why
        )

    with closing(pace.batches(encoded, missing)) as batches:
        for batch in batches:
            if batch.vectors is not None:
                vectors = _of_width(batch.vectors.shape[1], vectors, found, cache)
                cache.put(dict(zip(batch.hashes, batch.vectors, strict=True)), key)
                rows = [place[picture] for picture in batch.hashes]
                vectors[rows], found[rows] = batch.vectors, True
            reasons |= batch.reasons
            done += len(batch.hashes) + len(batch.reasons)
            if progress:
                progress(done, len(missing))
    rows_of = np.array([place[picture.hash] for picture in pictures], np.int64)
    usable = found[rows_of]
    rows_of = rows_of[usable]
    kept = tuple(picture for picture, use in zip(pictures, usable, strict=True) if use)
    skipped = (picture for picture in pictures if picture.hash in reasons)
    if not np.array_equal(rows_of, np.arange(len(vectors))):  # save the copy if it changes nothing
        vectors = vectors[rows_of]
    return Embedded(
        vectors=vectors,
        labels=np.array([picture.label for picture in kept], dtype=np.int64),
        pictures=kept,
        encoded=len(missing) - len(reasons),
        cached=cached,
        skipped=tuple(Skipped(picture.path, reasons[picture.hash]) for picture in skipped),
    )


def _decode(picture: Picture, preprocessing: Preprocessing, *, fast: bool) -> F32 | str:
    """Return the pixels float32 (3, S, S), or the reason why the picture cannot be used."""
    try:
        data = read_picture(picture.path)
        if picture_hash(data) != picture.hash:  # do not cache it under the old hash
            return "it changed after the folder was read"
        return decode(data, preprocessing, fast=fast)
    except DataError as error:
        return str(error)
    except OSError as error:
        return unreadable(error)


def _of_width(dim: int, vectors: F32, found: BOOL, cache: Cache) -> F32:
    """Return `vectors`, or zeros (n, dim) if none of them was found.

    Raises UnusableCacheError if they have another width.
    """
    if not found.any():
        return np.zeros((len(vectors), dim), np.float32)
    if vectors.shape[1] != dim:
        raise UnusableCacheError(
            f"the feature cache {cache.path} has features of width {vectors.shape[1]}, but the "
            f"encoder's width is {dim}; delete it, and the features are computed again"
        )
    return vectors


def _check_finite(vectors: F32, cache: Cache) -> None:
    if not np.isfinite(vectors).all():
        raise UnusableCacheError(
            f"the feature cache {cache.path} is damaged (NaN or infinity); delete it, and the "
            "features are computed again"
        )
