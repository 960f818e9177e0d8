"""Locks on files that one process at a time can hold."""

from __future__ import annotations

import fcntl
import threading
import time
from pathlib import Path

import pytest

from fedclip_edge.errors import ConfigError
from fedclip_edge.storage import lock
from fedclip_edge.storage.lock import is_locked, lock_file


def test_one_process_at_a_time_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock_file(path, "the state_dir"), pytest.raises(ConfigError, match="the state_dir is in"):
        lock_file(path, "the state_dir")
    lock_file(path, "the state_dir").close()


def test_a_look_says_if_it_is_held_and_makes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    assert not path.exists()
    with lock_file(path, "it"):
        assert is_locked(path)
    assert not is_locked(path)


def test_a_look_of_another_process_does_not_count_as_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    monkeypatch.setattr(lock, "_LOOKS_S", 30.0)
    path.touch()
    looking, is_waiting = path.open("rb"), threading.Event()
    fcntl.flock(looking, fcntl.LOCK_SH)

    def end(_s: float) -> None:
        is_waiting.set()
        looking.close()

    monkeypatch.setattr(time, "sleep", end)
    lock_file(path, "the state_dir").close()
    assert is_waiting.is_set()
