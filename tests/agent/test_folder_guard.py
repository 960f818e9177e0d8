"""The guard of a folder that may be emptied, and may be a share that is mounted late."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedclip_edge.agent.folder_guard import LATE_S, FolderGuard


class Inbox:
    """An inbox in which one picture was known, a clock, and the guard since the last start."""

    def __init__(self, site: Path) -> None:
        self.folder = site / "inbox"
        self.now = 1000.0
        self.start()

    def start(self) -> None:
        known = [str(self.folder / "a.png")]
        self.guard = FolderGuard(self.folder, True, lambda: known, clock=lambda: self.now)

    def make(self, *names: str) -> None:
        self.folder.mkdir()
        for name in names:
            (self.folder / name).write_bytes(b"picture")

    def put_away(self) -> None:
        self.folder.rename(self.folder.with_name("mounted"))

    def bring_back(self) -> None:
        self.folder.rmdir()
        self.folder.with_name("mounted").rename(self.folder)


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    made = Inbox(tmp_path)
    made.make("a.png")
    return made


@pytest.mark.parametrize("when", ["before the start", "later"])
def test_an_inbox_that_is_mounted_late_is_away_until_then(inbox: Inbox, when: str) -> None:
    if when == "later":
        assert not inbox.guard.look()
    inbox.put_away()
    inbox.make()
    assert inbox.guard.look()
    inbox.now += LATE_S / 2
    assert inbox.guard.look()
    inbox.bring_back()
    assert not inbox.guard.look()
    assert inbox.guard.has_come
    assert not inbox.guard.look()
    assert not inbox.guard.has_come


def test_an_inbox_that_stays_empty_is_not_waited_for_any_longer(inbox: Inbox) -> None:
    inbox.put_away()
    inbox.make()
    assert inbox.guard.look()
    inbox.now += LATE_S
    assert not inbox.guard.look()
    assert inbox.guard.has_come
    inbox.now += 10 * LATE_S
    assert not inbox.guard.look()


def test_an_inbox_that_is_emptied_or_gets_other_pictures_is_there(inbox: Inbox) -> None:
    assert not inbox.guard.look()
    (inbox.folder / "a.png").unlink()
    assert not inbox.guard.look()
    inbox.put_away()
    inbox.make("b.png")
    assert not inbox.guard.look()
    assert inbox.guard.has_come


def test_a_new_inbox_is_there_at_the_first_start(tmp_path: Path) -> None:
    folder = tmp_path / "inbox"
    folder.mkdir()
    guard = FolderGuard(folder, True, list)
    assert not guard.look()
    assert not guard.has_come
