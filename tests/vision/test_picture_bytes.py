"""Opening of picture files: what is no file, or too large, is refused at once."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from named_pipe import pipe_at

from fedclip_edge.vision.picture_bytes import MAX_FILE_BYTES, open_file, open_picture, read_picture
from fedclip_edge.vision.picture_index import hash_file
from fedclip_edge.vision.pictures import picture_hash


def test_a_pipe_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pipe_at(tmp_path / "pipe"), pytest.raises(OSError, match="pipe, a socket or a device"):
        open_file(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)


def test_a_file_that_is_too_large_for_a_picture_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    for opened in (open_picture, read_picture, hash_file):
        with pytest.raises(OSError, match="a picture has 512 at most") as raised:
            opened(path)
        assert raised.value.errno == errno.EFBIG


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(bytes(range(256)) * 9000)  # several parts
    assert hash_file(path) == picture_hash(read_picture(path)) == picture_hash(path.read_bytes())
