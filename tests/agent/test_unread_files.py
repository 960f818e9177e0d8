"""Files that came: read when they are still, in portions; named once if they cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from fedclip_edge import log
from fedclip_edge.agent import unread_files
from fedclip_edge.agent.unread_files import INCOMPLETE_S, STILL_S, UnreadFiles
from fedclip_edge.vision.picture_index import PictureIndex, hash_file, state_of


def unread() -> UnreadFiles:
    return UnreadFiles(PictureIndex(), lambda _: 0.0)


def picture(path: Path, grey: int = 1) -> str:
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(path)
    return str(path)


def read(files: UnreadFiles, now: float, *, away: bool = False) -> list[tuple[str, str | None]]:
    return list(files.read(now, lambda _: away))


def test_a_file_is_read_when_it_is_still(tmp_path: Path) -> None:
    files, name = unread(), picture(tmp_path / "a.png")
    files.note(name, state_of(name), 0.0)
    assert read(files, STILL_S / 2) == []
    assert not files.are_due(STILL_S / 2)
    picture(tmp_path / "a.png", 2)  # it changes, and that is found at the next attempt
    assert read(files, STILL_S) == []
    assert read(files, STILL_S * 1.5) == []
    assert files.are_due(STILL_S * 2)
    assert read(files, STILL_S * 2) == [(name, hash_file(Path(name)))]
    assert len(files) == 0


def test_a_file_that_was_read_before_is_not_unknown(tmp_path: Path) -> None:
    files, name = unread(), picture(tmp_path / "a.png")
    seen = [files.has_unknown]
    files.note(name, state_of(name), 0.0)
    seen.append(files.has_unknown)
    assert len(read(files, 1.0)) == 1
    picture(tmp_path / "a.png", 2)
    files.note(name, state_of(name), 2.0)
    assert len(files) == 1
    seen.append(files.has_unknown)
    assert seen == [False, True, False]


def test_one_without_its_end_waits_longer(tmp_path: Path) -> None:
    files, name = unread(), picture(tmp_path / "a.png")
    Path(name).write_bytes(Path(name).read_bytes()[:-20])
    files.note(name, state_of(name), 0.0)
    assert read(files, INCOMPLETE_S - 0.1) == []
    assert read(files, INCOMPLETE_S) == [(name, hash_file(Path(name)))]


def test_a_file_in_a_folder_that_is_away_waits(tmp_path: Path) -> None:
    files, name = unread(), picture(tmp_path / "a.png")
    files.note(name, state_of(name), 0.0)
    assert read(files, 1.0, away=True) == []
    assert name in files
    assert [one for one, _ in read(files, 1.0)] == [name]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_one_that_may_not_be_read_is_named_once_until_it_changes(tmp_path: Path) -> None:
    files, name = unread(), picture(tmp_path / "a.png")
    Path(name).chmod(0)
    _named_once(files, name)


def test_one_that_is_too_large_is_named_once_until_it_changes(tmp_path: Path) -> None:
    files, name = unread(), picture(tmp_path / "a.png")
    os.truncate(name, 2**30)
    _named_once(files, name)


def _named_once(files: UnreadFiles, name: str) -> None:
    said: list[str] = []
    with log.observed(lambda event, _: said.append(event)):
        for now in (0.0, 10.0, 20.0):
            files.note(name, state_of(name), now)
            found = read(files, now + INCOMPLETE_S)
            assert found == ([(name, None)] if now == 0.0 else [])
        assert said == ["picture_skipped"]
        Path(name).unlink()
        files.drop(name)
        picture(Path(name))
        files.note(name, state_of(name), 30.0)
        assert read(files, 31.0) == [(name, hash_file(Path(name)))]


def test_ten_thousand_files_are_read_in_portions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call reads for BUDGET_S only, by a clock that a file costs a hundredth of it."""
    clock = [0.0]

    def hashed(_: PictureIndex, path: Path) -> str:
        clock[0] += unread_files.BUDGET_S / 100
        return str(path)

    monkeypatch.setattr(unread_files, "monotonic", lambda: clock[0])
    monkeypatch.setattr(unread_files, "is_complete", lambda _: True)
    monkeypatch.setattr(PictureIndex, "hash_of", hashed)
    files, name = unread(), picture(tmp_path / "a.png")
    state = state_of(name)
    monkeypatch.setattr(unread_files, "state_of", lambda _: state)
    names = {f"{number}.png" for number in range(10_000)}
    for one in names:
        files.note(one, state, 0.0)
    found: list[str] = []
    calls = 0
    while len(files):
        some = [one for one, _ in read(files, 1.0)]
        assert len(some) <= 102
        found += some
        calls += 1
    assert calls in range(98, 102)
    assert set(found) == names
    assert len(found) == 10_000
