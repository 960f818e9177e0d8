"""Content of a feature cache, read without changing it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

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
