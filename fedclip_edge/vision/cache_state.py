"""Content of a feature cache, read without changing it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedclip_edge.records import F32
from fedclip_edge.vision.cache_file import errors_of, open_cache_to_read
from fedclip_edge.vision.feature_block import unpack


@dataclass(frozen=True)
class CacheState:
    """Content of a cache for one feature key."""

    pictures: frozenset[str]  # hashes of the pictures with a feature that is whole
    damaged: int  # blocks of features that are not as they were stored
    size_bytes: int  # of the file


def examine(path: Path, feature_key: str) -> CacheState:
    """Read all features of one key; another process may be at work.

    Raises DataError if the file is damaged or something else, DiskError if it cannot be read.
    """
    whole, damaged = set[str](), 0
    with closing(open_cache_to_read(path)) as database, errors_of(path):
        for content in database.execute(
            "SELECT key, pictures, checksum, vectors FROM block WHERE key = ?", (feature_key,)
        ):
            block = unpack(*content)
            if block is None:
                damaged += 1
            else:
                whole.update(block.pictures)
    return CacheState(frozenset(whole), damaged, path.stat().st_size)


def cached_pictures(path: Path, feature_key: str) -> frozenset[str]:
    """List the hashes of the pictures with a feature of this key; no feature is read.

    Raises the errors of `examine`.
    """
    with closing(open_cache_to_read(path)) as database, errors_of(path):
        found = database.execute(
            "SELECT picture FROM feature JOIN block ON block.id = block WHERE key = ?",
            (feature_key,),
        )
        return frozenset(str(picture) for (picture,) in found)


def cached_features(
    path: Path, feature_key: str, rows: Mapping[str, int], dim: int
) -> tuple[F32, list[str]]:
    """Read features of this key without a change of the file: raw, float32 (N, D).

    `rows` gives the row of each wanted picture, by hash, from 0 to N - 1; D is `dim`. The rows of
    pictures without a whole feature of this width are zeros, and their hashes are returned too.
    Raises the errors of `examine`.
    """
    vectors, missing = np.zeros((len(rows), dim), np.float32), dict(rows)
    with closing(open_cache_to_read(path)) as database, errors_of(path):
        for content in database.execute(
            "SELECT key, pictures, checksum, vectors FROM block WHERE key = ?", (feature_key,)
        ):
            block = unpack(*content)
            if block is None or block.vectors.shape[1] != dim:
                continue
            for place, picture in enumerate(block.pictures):
                row = missing.pop(picture, None)
                if row is not None:
                    vectors[row] = block.vectors[place]
    return vectors, list(missing)
