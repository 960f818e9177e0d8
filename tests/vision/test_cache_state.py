"""Content of a feature cache that is read without changing it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fedclip_edge.errors import DataError, DiskError
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.cache_state import cached_features, cached_pictures

HASHES = [f"{n:064x}" for n in range(200)]
VECTORS = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)


def filled(path: Path) -> Path:
    with FeatureCache(path) as cache:
        cache.put(dict(zip(HASHES, VECTORS, strict=True)), "key")
        cache.put(dict(zip(HASHES[:7], VECTORS[:7] + 1, strict=True)), "other")
        cache.forget(HASHES[190:])
    return path


def content(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(path.parent.iterdir()))


def test_pictures_and_features_of_one_key_are_read_and_nothing_is_changed(tmp_path: Path) -> None:
    path = filled(tmp_path / "features.sqlite")
    before = content(path)
    assert cached_pictures(path, "key") == set(HASHES[:190])
    assert cached_pictures(path, "other") == set(HASHES[:7])
    wanted = {HASHES[195]: 0, HASHES[3]: 1, HASHES[150]: 2, "f" * 64: 3}
    vectors, missing = cached_features(path, "key", wanted, 4)
    assert sorted(missing) == sorted([HASHES[195], "f" * 64])
    assert np.array_equal(vectors, [[0] * 4, VECTORS[3], VECTORS[150], [0] * 4])
    assert cached_features(path, "key", wanted, 5)[1] == list(wanted)
    assert content(path) == before


def test_a_damaged_feature_is_missing_and_stays(tmp_path: Path) -> None:
    path = filled(tmp_path / "features.sqlite")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE block SET checksum = 0 WHERE id = 1")
    _, missing = cached_features(path, "key", {one: n for n, one in enumerate(HASHES[:190])}, 4)
    assert missing
    assert set(missing) < set(HASHES)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM block WHERE id = 1").fetchone() == (1,)


def test_a_file_that_is_missing_or_another_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError):
        cached_pictures(tmp_path / "none.sqlite", "key")
    (tmp_path / "other.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(DataError):
        cached_features(tmp_path / "other.sqlite", "key", {HASHES[0]: 0}, 4)
