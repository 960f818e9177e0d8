"""The file with the token of a page: made once, private, and refused if it is not."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from fedclip_edge.errors import ConfigError
from fedclip_edge.web.token_file import read_token


def test_a_token_is_made_once_in_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.token"
    token = read_token(path)
    assert len(token) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_token(path) == token
    path.unlink()
    assert read_token(path) != token


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.token"
    read_token(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=rf"run `chmod 600 {re.escape(str(path))}`"):
        read_token(path)


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 40])
def test_a_token_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="for a new token"):
        read_token(path)
