"""The index of picture files: an unchanged file is not read again, a changed one always is."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from fedclip_edge.errors import DataError
from fedclip_edge.vision import picture_index
from fedclip_edge.vision.picture_index import RECENT_S, PictureIndex, hash_file, read_index


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read."""
    paths: list[Path] = []

    def hashing(path: Path) -> str:
        paths.append(path)
        return hash_file(path)

    monkeypatch.setattr(picture_index, "hash_file", hashing)
    return paths


def scan(index: PictureIndex, *paths: Path) -> list[str]:
    found = [index.hash_of(path) for path in paths]
    index.keep_only({str(path) for path in paths})
    return found


def old(path: Path, content: bytes) -> Path:
    """Write a file; its index is to be asked as if that was an hour ago."""
    path.write_bytes(content)
    return path


def later(path: Path) -> PictureIndex:
    return PictureIndex(clock=lambda: path.stat().st_ctime + 3600)


def test_an_unchanged_file_is_read_once(tmp_path: Path, read: list[Path]) -> None:
    one, two = old(tmp_path / "1", b"one"), old(tmp_path / "2", b"two")
    index = later(one)
    first = scan(index, one, two)
    assert first == scan(index, one, two) == [hash_file(one), hash_file(two)]
    assert read == [one, two]


def test_a_file_that_has_changed_is_read_again(tmp_path: Path, read: list[Path]) -> None:
    path = old(tmp_path / "1", b"one")
    index, times = later(path), path.stat()
    scan(index, path)
    path.write_bytes(b"two")  # of the same size
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # and with the same time
    assert scan(index, path) == [hash_file(path)]
    other = old(tmp_path / "2", b"six")
    other.replace(path)
    assert scan(index, path) == [hash_file(path)]
    assert len(read) == 3


def test_a_file_that_changed_just_before_is_not_relied_on(tmp_path: Path, read: list[Path]) -> None:
    path = old(tmp_path / "1", b"one")
    index = PictureIndex(clock=lambda: path.stat().st_ctime + RECENT_S / 2)
    scan(index, path)
    scan(index, path)
    assert read == [path, path]


def test_a_file_that_is_gone_is_forgotten(tmp_path: Path, read: list[Path]) -> None:
    one, two = old(tmp_path / "1", b"one"), old(tmp_path / "2", b"two")
    index = later(one)
    scan(index, one, two)
    scan(index, one)
    assert set(index._known) == {str(one)}
    two.unlink()
    with pytest.raises(OSError, match="No such file"):
        index.hash_of(two)


def opened(file: Path, clock_of: Path) -> PictureIndex:
    index = PictureIndex(lambda: clock_of.stat().st_ctime + 3600, file)
    index.open()
    return index


def test_an_unchanged_file_is_not_read_after_a_restart(tmp_path: Path, read: list[Path]) -> None:
    one, odd = old(tmp_path / "1", b"one"), old(tmp_path / os.fsdecode(b"\xff'2"), b"two")
    first = opened(tmp_path / "index", one)
    found = scan(first, one, odd)
    first.save()
    first.close()
    again = opened(tmp_path / "index", one)
    assert scan(again, one, odd) == found
    assert again.hashes() == set(found)
    odd.unlink()
    scan(again, one)
    again.save()
    again.close()
    last = opened(tmp_path / "index", one)
    assert last.hashes() == {found[0]}
    last.close()
    assert read == [one, odd]


CHANGED = (
    "UPDATE file SET hash = replace(hash, substr(hash, 1, 1), 'q')",
    "UPDATE file SET inode = '1x'",
    "UPDATE file SET path = 5",
    "UPDATE file SET read_s = 'x'",
    "INSERT INTO event VALUES ('a', 1.0, 'q')",
)


@pytest.mark.parametrize("damage", ["no database", "another version", *CHANGED])
def test_a_damaged_index_is_made_anew(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, picture = tmp_path / "index", old(tmp_path / "1", b"one")
    first = opened(file, picture)
    first.hash_of(picture)
    first.save()
    first.close()
    if damage == "no database":
        file.write_bytes(b"something else" * 1000)
    else:
        with sqlite3.connect(file) as database:
            database.execute(damage if damage in CHANGED else "PRAGMA user_version = 99")
        database.close()
        assert read_index(file).paths() == set()
    index = opened(file, picture)
    assert index.hash_of(picture) == hash_file(picture)
    index.save()
    index.close()
    assert "picture_index_rebuilt" in capsys.readouterr().out
    again = opened(file, picture)
    assert len(again.hashes()) == 1
    again.close()


def test_another_program_s_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "index"
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE other (x)")
    database.close()
    before = file.read_bytes()
    with pytest.raises(DataError, match="is not an index of pictures but another database"):
        PictureIndex(file=file).open()
    assert file.read_bytes() == before


def test_an_audit_finds_a_change_that_left_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = old(tmp_path / "1", b"one"), old(tmp_path / "2", b"two")
    index = later(one)
    scan(index, one, two)
    assert [index.audit() for _ in range(4)] == [None] * 4
    state = picture_index.state_of(two)
    two.write_bytes(b"TWO")
    real = picture_index.state_of
    monkeypatch.setattr(
        picture_index, "state_of", lambda path: state if str(path) == str(two) else real(path)
    )
    found = [index.audit() for _ in range(2)]
    assert found == [None, two]
    assert index.hash_of(two) == hash_file(two)
    two.unlink()
    assert [index.audit() for _ in range(4)] == [None] * 4


def test_a_file_of_a_clock_that_was_wrong_is_read_once(tmp_path: Path, read: list[Path]) -> None:
    path = old(tmp_path / "a.jpg", b"a")
    hour_later = path.stat().st_ctime + 3600
    os.utime(path, (hour_later + 1e7, hour_later + 1e7))
    index = PictureIndex(clock=lambda: hour_later)
    assert scan(index, path) == scan(index, path)
    assert read == [path]


@pytest.mark.parametrize("ahead_s", [-2, 0, 2, 600])
def test_a_file_that_may_still_change_is_read_again(
    tmp_path: Path, read: list[Path], ahead_s: float
) -> None:
    path = old(tmp_path / "a.jpg", b"a")
    hour_later = path.stat().st_ctime + 3600
    os.utime(path, (hour_later + ahead_s, hour_later + ahead_s))
    index = PictureIndex(clock=lambda: hour_later)
    assert scan(index, path) == scan(index, path)
    assert read == [path, path]


def test_a_picture_came_when_its_file_changed_or_else_when_it_was_read(tmp_path: Path) -> None:
    one = old(tmp_path / "1", b"one")
    os.utime(one, (1e9, 1e9))
    index = later(one)
    index.hash_of(one)
    assert index.came_at(str(one)) == 1e9
    fresh = PictureIndex(clock=lambda: one.stat().st_ctime + 1)
    fresh.hash_of(one)
    assert fresh.came_at(str(one)) == int(one.stat().st_ctime + 1)
    assert fresh.came_at("other") == 0
