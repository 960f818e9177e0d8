"""Atomic writes: after any failure, the old or the new content is there, and no leftovers."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import system

from fedclip_edge.storage import atomic

NEW = {"a": b"new", "b": bytes(1000)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("step", ["_write", "_sync", "_move"])
@pytest.mark.parametrize("old", [True, False])
def test_a_folder_that_fails_half_way_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: BaseException, step: str, old: bool
) -> None:
    target = tmp_path / "deeper" / "folder"
    if old:
        atomic.write_folder(target, {"a": b"old"}, check=lambda _: None)

    def fail(*_: object) -> None:
        raise kind

    with monkeypatch.context() as patch:
        patch.setattr(atomic, step, fail)
        with pytest.raises((KeyboardInterrupt, OSError)):
            atomic.write_folder(target, NEW, check=lambda _: None)
    assert names(target.parent) == (["folder"] if old else [])
    assert not old or (target / "a").read_bytes() == b"old"


def test_what_the_check_refuses_is_not_there(tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        assert names(folder) == ["a", "b"]
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        atomic.write_folder(tmp_path / "folder", NEW, check=refuse)
    assert names(tmp_path) == []


def test_a_failed_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "folder"
    atomic.write_folder(target, {"a": b"old"}, check=lambda _: None)
    rename = Path.rename

    def fail(self: Path, to: Path) -> Path:
        if to == target and ".new." in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output error"):
        atomic.write_folder(target, NEW, check=lambda _: None)
    assert names(tmp_path) == ["folder"]
    assert (target / "a").read_bytes() == b"old"


@pytest.mark.parametrize("step", ["_write", "_sync"])
def test_a_file_that_fails_half_way_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    target = tmp_path / "file"
    atomic.write_file(target, b"old")
    write = getattr(atomic, step)

    def fail(path: Path, *data: bytes, **how: bool) -> None:
        write(path, *data, **how)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, step, fail)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_file(target, b"new")
    assert names(tmp_path) == ["file"]
    assert target.read_bytes() in {b"old", b"new"}


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    atomic.write_folder(tmp_path / "folder", NEW, check=lambda _: None)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask


WRITER = """
import pathlib, sys, time
from fedclip_edge.storage import atomic
def wait(folder):
    print(folder, flush=True)
    time.sleep(600)
atomic.write_folder(pathlib.Path(sys.argv[1]), {"a": b"killed"}, check=wait)
"""


@contextlib.contextmanager
def waiting_writer(target: Path) -> Iterator[Path]:
    """A writer that has written all data and waits before the rename; it is killed on exit."""
    command = [sys.executable, "-c", WRITER, str(target)]
    with system.running(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        yield Path(writer.stdout.readline().strip())


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    with waiting_writer(tmp_path / "folder") as left:
        pass
    assert names(tmp_path) == [left.name]  # the final name does not exist
    atomic.write_folder(tmp_path / "folder", NEW, check=lambda _: None)
    assert names(tmp_path) == ["folder"]


def test_a_writer_that_lives_is_left_alone(tmp_path: Path) -> None:
    with waiting_writer(tmp_path / "folder") as at_work:
        atomic.write_folder(tmp_path / "folder", NEW, check=lambda _: None)
        assert at_work.is_dir()


def test_a_folder_that_is_no_rest_is_left_alone(tmp_path: Path) -> None:
    keep = tmp_path / ".folder.new"
    keep.mkdir()
    atomic.write_file(tmp_path / "folder", b"")
    assert keep.is_dir()


def test_a_disk_that_refuses_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> str:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    with pytest.raises(OSError, match="Read-only"):
        atomic.write_file(tmp_path / "file", b"")


def test_a_folder_that_cannot_be_moved_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount point, or the current folder of a process."""
    atomic.write_folder(tmp_path / "folder", {"a": b"old"}, check=lambda _: None)
    monkeypatch.chdir(tmp_path / "folder")
    with pytest.raises(OSError, match="busy"):
        atomic.write_folder(Path(), NEW, check=lambda _: None)
    assert names(tmp_path / "folder") == ["a"]


def test_what_a_killed_writer_moved_aside_goes_with_the_next_write(tmp_path: Path) -> None:
    aside = tmp_path / ".folder.old.killed"
    atomic.write_folder(aside / "folder", {"a": b"old"}, check=lambda _: None)
    atomic.write_folder(tmp_path / "folder", NEW, check=lambda _: None)
    assert names(tmp_path) == ["folder"]


def test_a_new_folder_is_whole_private_where_asked_and_never_in_the_way(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        contents = {"key": b"secret", "inner/cert": b"public"}
        atomic.make_folder(tmp_path / "made", contents, ["key"])
        atomic.write_file(tmp_path / "made" / "other", b"secret", private=True)
    finally:
        os.umask(before)
    made = {p.name: (p.read_bytes(), stat.S_IMODE(p.stat().st_mode)) for p in files(tmp_path)}
    assert made == {
        "key": (b"secret", 0o600),
        "other": (b"secret", 0o600),
        "cert": (b"public", 0o666),
    }
    (tmp_path / "file").write_text("mine")
    for taken in ("made", "file"):
        with pytest.raises(FileExistsError):
            atomic.make_folder(tmp_path / taken, {"new": b""}, [])
    assert {p.name for p in files(tmp_path)} == {*made, "file"}
    atomic.make_folder(tmp_path / "inner" / "folder", {"new": b""}, [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "inner", "made"]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_replaced_file_keeps_its_mode_and_its_group(tmp_path: Path) -> None:
    path = tmp_path / "crl.pem"
    atomic.write_file(path, b"old")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 4711, 4712)
    before = path.stat()
    mask = os.umask(0o077)
    try:
        atomic.write_file(path, b"new")
    finally:
        os.umask(mask)
    after = path.stat()
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    path.chmod(0o644)
    atomic.write_file(path, b"secret", private=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_new_files_are_all_written_and_private_or_none_is(tmp_path: Path) -> None:
    atomic.write_new_files(tmp_path, {"a": b"1", "b": b"2"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"1", "b": b"2"}
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}
    with pytest.raises(FileExistsError, match="b"):
        atomic.write_new_files(tmp_path, {"c": b"3", "b": b"4"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"1", "b": b"2"}


def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    link = tmp_path / "out"
    link.symlink_to("/dev/null")
    atomic.write_file(link, b"content")
    assert link.is_symlink()
    assert link.is_char_device()
    assert list(tmp_path.iterdir()) == [link]
