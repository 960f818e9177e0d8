"""The list of pictures that need no answer any more, across restarts, kills and faults."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path

import pytest

from fedclip_edge.agent.answered_pictures import ANSWERED, AnsweredPictures
from fedclip_edge.errors import DataError, DiskError


def opened(folder: Path) -> AnsweredPictures:
    made = AnsweredPictures(folder / ANSWERED)
    made.open()
    return made


def one_of_a_later_start(folder: Path, *pictures: str) -> AnsweredPictures:
    made = opened(folder)
    made.note(pictures)
    made.end_first_start()
    made.save(0.0)
    made.close()
    return opened(folder)


def test_the_first_start_lasts_until_all_its_pictures_are_noted(tmp_path: Path) -> None:
    first = opened(tmp_path)
    assert first.settled() is None
    first.note(["a"])
    first.save(0.0)
    first.close()  # killed
    second = opened(tmp_path)
    assert second.settled() is None
    second.end_first_start()
    assert not second.is_first_start
    second.save(0.0)
    second.close()
    third = opened(tmp_path)
    assert third.settled() == frozenset({"a"})
    third.close()


def test_what_is_noted_and_not_forgotten_is_there_at_the_next_start(tmp_path: Path) -> None:
    made = one_of_a_later_start(tmp_path, "a", "b")
    made.forget(["a", "c"])
    made.note(["c", "d"])
    made.note(["d"])
    made.save(1.0)
    made.note(["e"])
    made.close()  # killed before it was saved
    again = opened(tmp_path)
    assert again.settled() == frozenset({"b", "c", "d"})
    again.close()


def test_while_the_file_cannot_be_written_the_notes_wait(tmp_path: Path) -> None:
    made = one_of_a_later_start(tmp_path, "a")
    assert made._db is not None
    made._db.execute("PRAGMA query_only = ON")
    made.note(["b"])
    made.save(10.0)
    made._db.execute("PRAGMA query_only = OFF")
    made.save(10.1)
    assert made.settled() == frozenset({"a"})  # it is not tried all the time
    made.save(20.0)
    assert made.settled() == frozenset({"a", "b"})
    made.close()


def test_a_damaged_file_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_of_a_later_start(tmp_path, *(f"{number:064x}" for number in range(500))).close()
    data = bytearray((tmp_path / ANSWERED).read_bytes())
    data[5000:20000] = b"\xff" * 15000
    (tmp_path / ANSWERED).write_bytes(data)
    made = opened(tmp_path)
    assert made.settled() is None
    assert "answered_pictures_lost" in capsys.readouterr().out
    made.end_first_start()
    made.save(math.inf)
    made.close()
    again = opened(tmp_path)
    assert again.settled() == frozenset()
    again.close()


def test_a_file_that_is_not_ours_stays(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / ANSWERED) as other:
        other.execute("CREATE TABLE things (name TEXT)")
    other.close()
    with pytest.raises(DataError, match="another database; move it away"):
        opened(tmp_path)
    (tmp_path / "folder").write_bytes(b"")
    with pytest.raises(DiskError, match="check the free disk space"):
        AnsweredPictures(tmp_path / "folder" / "x").open()
