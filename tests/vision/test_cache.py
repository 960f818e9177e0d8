"""The feature cache: entries under their own key only, and complete or absent."""

from __future__ import annotations

import contextlib
import sqlite3
from functools import cache as cache_in_memory
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedclip_edge.errors import DataError, DiskError
from fedclip_edge.records import F32
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.pictures import picture_hash

KEY, OTHER = "a" * 64, "b" * 64
FEATURES = st.dictionaries(
    st.binary(max_size=3).map(picture_hash),
    hnp.arrays(np.float32, 4, elements=st.floats(width=32, allow_nan=False)),
    max_size=8,
)


def vector(*values: float) -> F32:
    return np.array(values, np.float32)


@settings(max_examples=25)  # each example writes files
@given(FEATURES, FEATURES)
def test_gives_back_the_bits_that_were_put(
    tmp_path_factory: pytest.TempPathFactory, mine: dict[str, F32], others: dict[str, F32]
) -> None:
    path = tmp_path_factory.mktemp("cache") / "features.sqlite"
    with FeatureCache(path) as cache:
        cache.put(mine, KEY)
        cache.put(others, OTHER)
    with FeatureCache(path) as cache:
        found = cache.get([*mine, *others, "c" * 64], KEY)
        assert len(cache) == len(mine) + len(others)
    assert set(found) == set(mine)
    for name, value in mine.items():
        assert found[name].dtype == np.float32
        assert found[name].tobytes() == value.tobytes()


def test_the_first_feature_stays(tmp_path: Path) -> None:
    with FeatureCache(tmp_path / "f.sqlite") as cache:
        cache.put({"p": vector(1, 2)}, KEY)
        cache.put({"p": vector(3, 4), "q": vector(5, 6)}, KEY)
        assert cache.get(["p"], KEY)["p"].tolist() == [1, 2]
        assert cache.get(["q"], KEY)["q"].tolist() == [5, 6]


def test_asks_for_more_than_one_statement_can_hold(tmp_path: Path) -> None:
    many = {picture_hash(str(i).encode()): vector(i) for i in range(2500)}
    with FeatureCache(tmp_path / "deeper" / "f.sqlite") as cache:
        cache.put(many, KEY)
        assert cache.get(list(many), KEY) == many


def test_a_put_that_fails_leaves_nothing_of_itself(tmp_path: Path) -> None:
    bad = {"p": vector(1), "q": "no vector"}
    with FeatureCache(tmp_path / "f.sqlite") as cache:
        with pytest.raises(ValueError, match="could not convert"):
            cache.put(bad, KEY)  # type: ignore[arg-type]
        assert len(cache) == 0


def test_two_processes_may_share_it(tmp_path: Path) -> None:
    with FeatureCache(tmp_path / "f.sqlite") as one, FeatureCache(tmp_path / "f.sqlite") as two:
        one.put({"p": vector(1)}, KEY)
        two.put({"q": vector(2)}, KEY)
        assert set(one.get(["p", "q"], KEY)) == set(two.get(["p", "q"], KEY)) == {"p", "q"}


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(DataError, match=r"f\.sqlite is not a feature cache, .* damaged; name"):
        FeatureCache(path)


def test_a_damaged_page(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    many = {picture_hash(str(i).encode()): vector(*range(64)) for i in range(500)}
    with FeatureCache(path) as cache:
        cache.put(many, KEY)
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    with FeatureCache(path) as cache, pytest.raises(DataError, match=r"is damaged .*delete it"):
        cache.get(list(many), KEY)


# What damage can make of a vector, of its key and of its picture.
DAMAGED = ("vector = x'0102'", "vector = 'text'", f"key = '{OTHER}'", "picture = 'q'")


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_feature_is_forgotten_and_counted(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "f.sqlite"
    with FeatureCache(path) as cache:
        cache.put({"p": vector(1, 2), "r": vector(3, 4)}, KEY)
    db = sqlite3.connect(path)
    with db:
        db.execute(f"UPDATE feature SET {damage} WHERE picture = 'p'")  # noqa: S608 - a constant
    db.close()
    with FeatureCache(path) as cache:
        for key in (KEY, OTHER):
            assert set(cache.get(["p", "q", "r"], key)) == ({"r"} if key == KEY else set())
        assert (cache.damaged, len(cache)) == (1, 1)
        cache.put({"p": vector(1, 2)}, KEY)
        assert cache.get(["p"], KEY)["p"].tolist() == [1, 2]
        assert cache.damaged == 1


@cache_in_memory
def undamaged() -> tuple[bytes, dict[str, F32]]:
    """A file of 40 features, and the features."""
    features = {picture_hash(bytes([i])): vector(*range(i, i + 16)) for i in range(40)}
    with TemporaryDirectory() as folder:
        with FeatureCache(Path(folder) / "f.sqlite") as cache:
            cache.put(features, KEY)
        return (Path(folder) / "f.sqlite").read_bytes(), features


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 255))
def test_a_flipped_byte_never_changes_a_feature(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, flip: int
) -> None:
    content, features = undamaged()
    at = data.draw(st.integers(0, len(content) - 1))
    path = tmp_path_factory.mktemp("damaged") / "f.sqlite"
    path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
    with contextlib.suppress(DataError, DiskError), FeatureCache(path) as cache:
        found = cache.get(list(features), KEY)
        missing = {name: feature for name, feature in features.items() if name not in found}
        cache.put(missing, KEY)
        for name, feature in (found | cache.get(list(features), KEY)).items():
            assert feature.tobytes() == features[name].tobytes()


def test_a_file_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    FeatureCache(path).close()
    db = sqlite3.connect(path)
    with db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(DataError, match="made by another version of this program; delete it"):
        FeatureCache(path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="of the feature cache cannot be created"):
        FeatureCache(tmp_path / "file" / "f.sqlite")
    with pytest.raises(DiskError, match="cannot be used: unable to open database file"):
        FeatureCache(tmp_path)


def test_a_cache_that_stays_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.sqlite"
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda name, **_: connect(name, timeout=0.01))
    with FeatureCache(path) as cache:
        other = connect(path)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DiskError, match="cannot be used: database is locked"):
            cache.put({"p": vector(1)}, KEY)
        other.rollback()
        other.close()
        cache.put({"p": vector(1)}, KEY)
        assert len(cache) == 1
