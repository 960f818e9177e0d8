"""The file of answers: whole lines, renamed in time, and patient with a full disk."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.agent import answer_file
from fedclip_edge.agent.answer_file import AnswerFile


def lines(path: Path) -> list[str]:
    content = path.read_text()
    assert content.endswith("\n") or not content
    return content.splitlines()


def all_lines(path: Path, old_files: int) -> list[str]:
    names = [Path(f"{path}.{n}") for n in range(old_files, 0, -1)]
    return [line for name in [*names, path] if name.exists() for line in lines(name)]


@contextmanager
def full_disk(most_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond `most_bytes`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_each_line_is_there_at_once(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "new folder" / "answers.jsonl", 10_000, 2)
    for number in range(3):
        file.add(b"%d\n" % number, 0.0)
        assert lines(file.path) == [str(n) for n in range(number + 1)]


def test_a_huge_file_without_a_line_is_renamed_unread(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old\n")
    os.truncate(path, 10**12)  # zeros that take no space
    AnswerFile(path, 10_000, 2).add(b"new\n", 0.0)
    assert path.read_bytes() == b"new\n"
    assert Path(f"{path}.1").stat().st_size == 10**12
    os.truncate(path, 1_000_000)  # as after a power cut
    AnswerFile(path, 10_000, 2).add(b"newer\n", 0.0)
    assert path.read_bytes() == b"new\nnewer\n"


def test_a_second_process_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    for number in range(2):
        AnswerFile(tmp_path / "a", 10_000, 2).add(b"%d\n" % number, 0.0)
    assert lines(tmp_path / "a") == ["0", "1"]


@given(st.lists(st.integers(1, 60), max_size=60), st.integers(0, 3))
def test_no_file_is_larger_than_it_may_be_and_the_newest_lines_stay(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], old_files: int
) -> None:
    path = tmp_path_factory.mktemp("answers") / "a"
    file = AnswerFile(path, 100, old_files)
    said = [str(place).rjust(size, ".") for place, size in enumerate(sizes)]
    for line in said:
        file.add(line.encode() + b"\n", 0.0)
    found = all_lines(path, old_files)
    assert found == said[len(said) - len(found) :]
    written = list(path.parent.iterdir())
    assert len(written) <= old_files + 1
    assert all(one.stat().st_size <= 100 for one in written)
    # What was dropped would not have fit into the files that may be there.
    if len(found) < len(said):
        assert len(written) == old_files + 1


def test_a_line_larger_than_the_file_may_be_is_written_all_the_same(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "a", 20, 1)
    for line in (b"1\n", b"2" * 50 + b"\n", b"3\n"):
        file.add(line, 0.0)
    assert lines(tmp_path / "a") == ["3"]
    assert lines(tmp_path / "a.1") == ["2" * 50]


@pytest.mark.parametrize("whole", [b"", b"1\n2\n"])
@pytest.mark.parametrize("torn", [b"3", b"3" * 200_000])
def test_a_line_that_a_power_cut_left_incomplete_is_removed(
    tmp_path: Path, whole: bytes, torn: bytes
) -> None:
    (tmp_path / "a").write_bytes(whole + torn)
    AnswerFile(tmp_path / "a", 1_000_000, 2).add(b"4\n", 0.0)
    assert (tmp_path / "a").read_bytes() == whole + b"4\n"


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free or repair the disk"),
        (PermissionError(errno.EACCES, "Permission denied"), f"let this user (uid {os.geteuid()})"),
        (IsADirectoryError(errno.EISDIR, "Is a directory"), "move away what is in its place"),
    ],
)
def test_each_fault_has_its_own_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: OSError,
    step: str,
) -> None:
    def fails(*_: object) -> int:
        raise error

    monkeypatch.setattr(os, "open", fails)
    AnswerFile(tmp_path / "a", 10_000, 2).add(b"1\n", 0.0)
    assert step in capsys.readouterr().out


def test_a_full_disk_is_reported_once_and_no_answer_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = AnswerFile(tmp_path / "a", 10_000, 2)
    file.add(b"first\n", 0.0)
    with full_disk(8):
        for number in range(20):
            file.add(b"%d\n" % number, 10.0 * number)
            assert lines(file.path)[0] == "first"  # and whole lines only
    file.look(1_000.0)
    assert lines(file.path) == ["first", *map(str, range(20))]
    said = capsys.readouterr().out
    assert said.count("answers_not_written") == 1
    assert said.count("answers_written") == 1
    assert "lost=0" in said


def test_a_failed_write_is_not_tried_again_for_each_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    real = os.open

    def counting(path: Path, flags: int, mode: int = 0o777) -> int:
        tries.append(path)
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", counting)
    (tmp_path / "a").mkdir()
    file = AnswerFile(tmp_path / "a", 10_000, 2)
    for number in range(100):
        file.add(b"%d\n" % number, 0.01 * number)
    assert len(tries) == 1
    (tmp_path / "a").rmdir()
    file.look(10.0)
    assert len(lines(tmp_path / "a")) == 100


def test_what_waits_is_bounded_and_what_is_lost_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    file = AnswerFile(tmp_path / "a", 10_000_000, 2)
    for number in range(answer_file.WAITING + 7):
        file.add(b"%d\n" % number, 0.0)
    (tmp_path / "a").rmdir()
    file.look(10.0)
    assert len(lines(tmp_path / "a")) == answer_file.WAITING
    assert "lost=7" in capsys.readouterr().out


def test_a_file_that_others_rename_is_made_again(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "a", 10_000, 2)
    file.add(b"1\n", 0.0)
    (tmp_path / "a").rename(tmp_path / "by logrotate")
    file.add(json.dumps({"n": 2}).encode() + b"\n", 0.0)
    assert lines(tmp_path / "a") == ['{"n": 2}']
