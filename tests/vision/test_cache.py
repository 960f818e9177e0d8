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


def change(path: Path, statement: str) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute(statement)
    db.close()


def some(first: int, count: int, width: int = 2) -> dict[str, F32]:
    """Features of `count` pictures."""
    return {
        picture_hash(str(i).encode()): vector(*range(i, i + width))
        for i in range(first, first + count)
    }


# What damage can make of a block's vectors, of its key and of its pictures.
DAMAGED = (
    "vectors = x'0102'",
    "vectors = 'text'",
    f"key = '{OTHER}'",
    "pictures = replace(pictures, 'a', 'b')",
    "checksum = 'text'",
)


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_block_is_forgotten_and_counted(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "f.sqlite"
    broken, whole = some(0, 20), some(100, 20)
    with FeatureCache(path) as cache:
        cache.put(broken, KEY)
        cache.put(whole, KEY)
    change(path, f"UPDATE block SET {damage} WHERE id = 1")  # noqa: S608 - constants
    with FeatureCache(path) as cache:
        for key in (KEY, OTHER):
            found = cache.get([*broken, *whole], key)
            assert set(found) == (set(whole) if key == KEY else set())
        assert (cache.damaged, len(cache)) == (20, 20)
        cache.put(broken, KEY)
        assert cache.get(list(broken), KEY).keys() == broken.keys()
        assert cache.damaged == 20


# What damage can make of the table that says where a picture's features are.
@pytest.mark.parametrize("damage", ["picture = 'q'", "block = 2", "block = 99", "block = 'x'"])
def test_a_feature_that_is_looked_for_in_the_wrong_block(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "f.sqlite"
    first, second = some(0, 20), some(100, 20)
    with FeatureCache(path) as cache:
        cache.put(first, KEY)
        cache.put(second, KEY)
    lost = next(iter(first))
    change(path, f"UPDATE feature SET {damage} WHERE picture = '{lost}'")  # noqa: S608 - constants
    with FeatureCache(path) as cache:
        assert cache.get([lost], KEY) == cache.get(["q"], KEY) == {}
        cache.put({lost: first[lost]}, KEY)
        assert cache.get([lost], KEY)[lost].tobytes() == first[lost].tobytes()
        cache.forget([lost, *second])
        assert cache.get([lost, *second], KEY) == {}


@pytest.mark.parametrize("put", [1, 3, 8, 64, 1000])
def test_all_of_them_as_one_array(tmp_path: Path, put: int) -> None:
    """Few are looked for one by one, many are read block by block: the same comes out."""
    features = some(0, 700, width=5)
    names = list(features)
    expected = np.stack([features[name] for name in names])
    with FeatureCache(tmp_path / "f.sqlite") as cache:
        cache.put(some(2000, 70, width=3), OTHER)
        for start in range(0, 700, put):
            cache.put({name: features[name] for name in names[start : start + put]}, KEY)
        for count in (1, 100, 700):
            rows = cache.read(names[:count], KEY)
            assert rows.found.all()
            assert rows.vectors.dtype == np.float32
            np.testing.assert_array_equal(rows.vectors, expected[:count])
        mixed = [*names[::-1], *(f"{i:064x}" for i in range(300))]
        rows = cache.read(mixed, KEY)
        assert rows.found.tolist() == [True] * 700 + [False] * 300
        np.testing.assert_array_equal(rows.vectors[:700], expected[::-1])
        assert not rows.vectors[700:].any()
        assert cache.read(["x"], KEY).vectors.shape == (1, 0)
        assert cache.read([], KEY).vectors.shape == (0, 0)


def test_features_put_one_by_one_do_not_get_a_block_each(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    features = some(0, 100)
    with FeatureCache(path) as cache:
        for name, one in features.items():
            cache.put({name: one}, KEY)
            cache.put({name: one}, OTHER)
        assert cache.get(list(features), KEY).keys() == features.keys()
    db = sqlite3.connect(path)
    (blocks,) = db.execute("SELECT count(*) FROM block").fetchone()
    db.close()
    assert blocks == 14  # 16 pictures each, of two keys


def test_features_of_another_width_are_not_mixed(tmp_path: Path) -> None:
    with FeatureCache(tmp_path / "f.sqlite") as cache:
        cache.put({"p": vector(1, 2)}, KEY)
        cache.put({"q": vector(1, 2, 3)}, KEY)
        assert cache.get(["p"], KEY)["p"].tolist() == [1, 2]
        with pytest.raises(DataError, match=r"features of width 2 and 3 of one encoder; delete it"):
            cache.get(["p", "q"], KEY)


def test_forgotten_pictures_leave_no_bit_behind(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    features = some(0, 150)
    names = list(features)
    gone = [*names[:64], names[70], names[149]]  # a whole block, and parts of two
    with FeatureCache(path) as cache:
        cache.put(features, KEY)
        cache.put({names[70]: vector(9, 9, 9)}, OTHER)
        assert cache.forget([*gone, "unknown"]) == 67
        assert cache.forget(gone) == 0
        assert cache.get(names, KEY).keys() == set(names) - set(gone)
        for name, one in cache.get(names, KEY).items():
            assert one.tobytes() == features[name].tobytes()
        assert cache.get(gone, OTHER) == {}
        assert (len(cache), cache.damaged) == (84, 0)
        cache.put({names[70]: features[names[70]]}, KEY)
        assert set(cache.get(gone, KEY)) == {names[70]}
    db = sqlite3.connect(path)
    stored = " ".join(text for (text,) in db.execute("SELECT pictures FROM block"))
    db.close()
    assert not any(name in stored for name in gone if name != names[70])


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
    change(path, "PRAGMA user_version = 9")
    with pytest.raises(DataError, match="made by another version of this program; delete it"):
        FeatureCache(path)


def test_a_file_of_the_earlier_version(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    change(path, "CREATE TABLE feature (key TEXT, picture TEXT, vector BLOB, checksum INTEGER)")
    change(path, "PRAGMA user_version = 2")
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
