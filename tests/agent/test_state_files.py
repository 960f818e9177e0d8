"""The state of a device in two files: damage to one of them loses no position."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fedclip_edge import log
from fedclip_edge.agent.state_db import PendingUpdate, RunPosition, StateDb
from fedclip_edge.agent.state_files import POSITION, STATE, open_state
from fedclip_edge.errors import ConfigError
from fedclip_edge.protocol.hand_over import hand_over
from fedclip_edge.protocol.message_parts import Address
from fedclip_edge.protocol.signing import create_identity
from fedclip_edge.storage import atomic

HERE = RunPosition(7, "run-1", 3)
KEYS = [create_identity() for _ in range(2)]
STATEMENT = hand_over(KEYS[0], KEYS[1].key)
WAS, NOW = Address("old", 8883), Address("new", 8884)
BODY = b"payload" * 100_000


def fill(state_db: StateDb) -> None:
    state_db.move_position(HERE)
    state_db.add_hand_overs([STATEMENT])
    state_db.move_broker(WAS, NOW)
    sha256 = hashlib.sha256(BODY).hexdigest()
    update = PendingUpdate("run-1", 4, "b" * 64, sha256, BODY, 5)
    state_db.keep_update(update, {"gate": np.ones(3, np.float32)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The state_dir of a device that has a pending update."""
    with closing(open_state(tmp_path)) as state_db:
        fill(state_db)
    assert not (tmp_path / f"{STATE}-wal").exists()
    return tmp_path


def opened(folder: Path) -> tuple[RunPosition, bool, bool, bool, list[str]]:
    """Open the state; returns the position, whether the rest is there, and the events."""
    said: list[str] = []
    with (
        log.observed(lambda name, _: said.append(name)),
        closing(open_state(folder)) as state_db,
    ):
        return (
            state_db.position,
            state_db.hand_overs() == (STATEMENT,),
            state_db.broker(WAS) == NOW,
            state_db.pending_update("run-1") is not None,
            said,
        )


def zeros(content: bytes) -> bytes:
    return bytes(len(content))


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2 + 100]


def other_pages(content: bytes) -> bytes:
    return content[:32768] + b"\x55" * (len(content) - 32768)


def empty(_: bytes) -> bytes:
    return b""


def test_nothing_is_said_when_nothing_is_wrong(folder: Path) -> None:
    before = (folder / POSITION).stat().st_mtime_ns
    assert opened(folder) == (HERE, True, True, True, [])
    assert (folder / POSITION).stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", [zeros, cut, other_pages, empty, None])
def test_a_damaged_state_file_is_made_anew_and_only_the_update_is_lost(
    folder: Path, damage: Callable[[bytes], bytes] | None
) -> None:
    state = folder / STATE
    content = state.read_bytes()
    if damage is None:
        state.unlink()
    else:
        state.write_bytes(damage(content))
    assert opened(folder) == (HERE, True, True, False, ["state_file_rebuilt"])
    if damage is not None and damage is not empty:
        assert (folder / f"{STATE}.old").read_bytes() == damage(content)
    assert opened(folder) == (HERE, True, True, False, [])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", None])
def test_a_damaged_copy_is_made_anew(folder: Path, content: bytes | None) -> None:
    beside = folder / POSITION
    before = beside.read_bytes()
    if content is None:
        beside.unlink()  # or the device had a version without it
    else:
        beside.write_bytes(content)
    assert opened(folder) == (HERE, True, True, True, ["position_damaged"] * (content is not None))
    assert beside.read_bytes() == before


def test_a_changed_digit_is_damage(folder: Path) -> None:
    beside = folder / POSITION
    beside.write_text(beside.read_text().replace('"epoch": 7', '"epoch": 9'))
    assert opened(folder) == (HERE, True, True, True, ["position_damaged"])
    assert json.loads(beside.read_text())["position"]["epoch"] == 7


@pytest.mark.parametrize("copy", [b"{", None])
def test_without_both_the_agent_stops_and_says_what_to_do(folder: Path, copy: bytes | None) -> None:
    (folder / STATE).write_bytes(zeros((folder / STATE).read_bytes()))
    if copy is None:
        (folder / POSITION).unlink()
    else:
        (folder / POSITION).write_bytes(copy)
    before = (folder / STATE).read_bytes()
    with pytest.raises(ConfigError, match=r"nobody else controls the broker, then delete parked"):
        open_state(folder)
    assert (folder / STATE).read_bytes() == before


def test_a_new_device_has_nothing_to_lose(tmp_path: Path) -> None:
    (tmp_path / STATE).touch()  # killed while it was made
    assert opened(tmp_path)[0] == RunPosition()


def test_what_is_said_before_a_kill_is_in_the_copy(folder: Path) -> None:
    state_db = open_state(folder)
    later = RunPosition(8, "run-2", 0)
    state_db.move_position(later)
    state_db.move_position(RunPosition(8, "run-2", 1))  # only in the state file
    (folder / STATE).write_bytes(b"damaged" * 1000)  # nothing was closed, as in a killed process
    assert opened(folder)[0] == later
    state_db.close()


def test_a_lost_log_takes_the_device_back_no_further_than_the_copy(folder: Path) -> None:
    earlier = (folder / STATE).read_bytes()
    with closing(open_state(folder)) as state_db:
        state_db.move_position(RunPosition(9, "run-3", 1))
    (folder / STATE).write_bytes(earlier)
    assert opened(folder) == (RunPosition(9, "run-3", 1), True, True, True, [])


def test_a_full_disk_is_said_once_and_the_copy_is_written_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    said: list[str] = []
    with (
        log.observed(lambda name, _: said.append(name)),
        closing(open_state(folder)) as state_db,
    ):
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "write_file", full)
            for epoch in (8, 9):
                state_db.move_position(RunPosition(epoch, "run-1", 3))
        assert json.loads((folder / POSITION).read_text())["position"]["epoch"] == 7
        state_db.move_position(RunPosition(10, "run-1", 3))
    assert json.loads((folder / POSITION).read_text())["position"]["epoch"] == 10
    assert said == ["position_not_written"]


def test_a_state_file_of_another_version_is_made_anew_but_not_without_the_copy(
    folder: Path,
) -> None:
    with closing(sqlite3.connect(folder / STATE)) as database:
        database.execute("PRAGMA user_version = 9")
    before = (folder / STATE).read_bytes()
    copy = (folder / POSITION).read_bytes()
    (folder / POSITION).unlink()
    with pytest.raises(ConfigError, match="has format version 9"):
        open_state(folder)
    assert (folder / STATE).read_bytes() == before
    (folder / POSITION).write_bytes(copy)
    assert opened(folder) == (HERE, True, True, False, ["state_file_rebuilt"])
    assert (folder / f"{STATE}.old").read_bytes() == before


def test_the_database_of_another_program_is_left_alone(folder: Path) -> None:
    (folder / STATE).unlink()
    with closing(sqlite3.connect(folder / STATE, isolation_level=None)) as database:
        database.execute("CREATE TABLE other (x)")
    before = (folder / STATE).read_bytes()
    with pytest.raises(ConfigError, match="is a database of another program"):
        open_state(folder)
    assert (folder / STATE).read_bytes() == before
