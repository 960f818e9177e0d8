"""The index of picture files: an unchanged file is not read again, a changed one always is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedclip_edge.vision import picture_index
from fedclip_edge.vision.picture_index import RECENT_S, PictureIndex, hash_file


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
    index.forget_others()
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
    assert set(index._known) == {one}
    two.unlink()
    with pytest.raises(OSError, match="No such file"):
        index.hash_of(two)
