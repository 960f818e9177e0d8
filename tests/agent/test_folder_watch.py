"""The watch of a device's folders, with real files and the operating system's own reports."""

from __future__ import annotations

import functools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from named_pipe import pipe_at
from PIL import Image

from fedclip_edge import log
from fedclip_edge.agent import file_events, index_upkeep, known_pictures, unread_files
from fedclip_edge.agent.folder_watch import FolderWatch
from fedclip_edge.errors import DiskError
from fedclip_edge.vision import picture_index
from fedclip_edge.vision.picture_index import PictureIndex, hash_file

DEADLINE_S = 30.0
QUIET_S = 1.0  # longer than a new picture takes to be reported


def picture(path: Path, grey: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (grey, grey, grey)).save(path)
    return path


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read for their hash from now on."""
    paths: list[Path] = []

    def hashing(path: Path) -> str:
        paths.append(path)
        return hash_file(path)

    monkeypatch.setattr(picture_index, "hash_file", hashing)
    return paths


@dataclass
class Watched:
    """A watch of tmp_path/pictures and tmp_path/inbox, and everything that it has returned."""

    site: Path
    new: list[str] = field(default_factory=list)  # file names
    removed: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    settled: set[str] | None = None  # as the agent keeps them; None before the first start is over
    markers: int = 0
    parts: ExitStack = field(default_factory=ExitStack)

    @property
    def folder(self) -> Path:
        return self.site / "pictures"

    def start(self) -> Watched:
        (self.site / "inbox").mkdir(exist_ok=True)
        index = PictureIndex(file=self.site / "index")
        index.open()
        self.parts.enter_context(closing(index))
        self.watch = self.parts.enter_context(
            FolderWatch(
                self.folder,
                self.site / "inbox",
                index,
                settled=self.settled,
                forget=self.forgotten.extend,
            )
        )
        self.until(lambda: len(self.watch.index.paths()) > 0)
        return self

    def restart(self) -> Watched:
        self.watch.index.save()
        self.parts.close()
        self.new.clear()
        self.removed.clear()
        return self.start()

    def look(self) -> None:
        found = self.watch.changes()
        self.new += [picture.path.name for picture in found.new]
        self.removed += found.removed
        if self.settled is None:
            self.settled = set()
        self.settled |= {picture.hash for picture in found.new} | set(found.old)
        self.settled -= set(found.removed)

    def has_new(self, name: str) -> bool:
        return name in self.new

    def until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not is_so():
            assert time.monotonic() < deadline, (self.new, self.removed)
            self.look()
            time.sleep(0.02)

    def settle(self) -> None:
        """Look until nothing can come any more of what happened before."""
        self.markers += 1
        name = f"marker-{self.markers}.png"
        picture(self.site / "inbox" / name, 255 - self.markers)
        self.until(lambda: name in self.new)
        self.wait(QUIET_S)
        self.new.remove(name)

    def wait(self, seconds: float) -> None:
        """Go on looking."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    picture(tmp_path / "pictures" / "dog" / "old.png", 1)
    made = Watched(tmp_path).start()
    with made.parts:
        yield made


@pytest.fixture
def searched(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """The same on a network share: nothing is reported."""
    monkeypatch.setattr(file_events, "share_of", lambda _: "it is on a network share (nfs4)")
    return watched.restart()


@pytest.mark.parametrize("how", ["watched", "searched"])
@pytest.mark.parametrize("place", ["pictures/dog", "pictures", "pictures/a/b", "inbox", "inbox/c"])
def test_a_new_picture_is_reported_once(
    request: pytest.FixtureRequest, how: str, place: str
) -> None:
    watched = request.getfixturevalue(how)
    new = picture(watched.site / place / "new.png", 2)
    watched.until(lambda: watched.new == ["new.png"])
    shutil.copy(new, new.with_name("copy.png"))
    new.rename(new.with_name("renamed.png"))
    watched.settle()
    assert (watched.new, watched.removed) == (["new.png"], [])


def test_a_deleted_picture_is_removed_when_its_last_copy_is_gone(watched: Watched) -> None:
    old = watched.folder / "dog" / "old.png"
    name = hash_file(old)
    shutil.copy(old, watched.folder / "copy.png")
    watched.settle()
    old.unlink()
    watched.settle()
    assert watched.removed == []
    (watched.folder / "copy.png").unlink()
    watched.until(lambda: watched.removed == [name])
    assert watched.forgotten == [name]
    picture(old, 1)  # it is new again
    watched.until(lambda: watched.new == ["old.png"])


def test_a_deleted_or_renamed_folder_is_noticed(watched: Watched) -> None:
    new = picture(watched.folder / "dog" / "deep" / "new.png", 2)
    name = hash_file(new)
    watched.until(lambda: watched.new == ["new.png"])
    (watched.folder / "dog" / "deep").rename(watched.folder / "deep")
    watched.settle()
    assert watched.removed == []
    shutil.rmtree(watched.folder / "deep")
    watched.until(lambda: watched.removed == [name])


def test_a_file_that_is_being_written_is_not_read(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = picture(watched.site / "whole.png", 3).read_bytes()
    read = hashed(monkeypatch)
    with (watched.folder / "slow.png").open("wb") as file:
        for start in range(len(content)):
            file.write(content[start : start + 1])
            file.flush()
            watched.look()
            time.sleep(0.02)
            if start > len(content) * 3 // 4 and not read:
                # The writer pauses. The end of the picture is missing, so nobody reads it yet.
                watched.wait(4 * unread_files.STILL_S)
                assert read == []
                file.write(content[start + 1 :])
                break
    watched.until(lambda: watched.new == ["slow.png"])
    assert [path.name for path in read] == ["slow.png"]


@pytest.mark.parametrize("name", [".new.png", "new.png.part", "new.tmp", ".sync/new.png", "n.txt"])
def test_temporary_and_hidden_files_are_not_pictures(watched: Watched, name: str) -> None:
    picture(watched.site / "real.png", 4)
    (watched.folder / name).parent.mkdir(exist_ok=True)
    shutil.copy(watched.site / "real.png", watched.folder / name)
    watched.settle()
    assert watched.new == []


def test_a_file_written_under_another_name_is_reported_under_its_own(watched: Watched) -> None:
    picture(watched.site / "real.png", 4)
    shutil.copy(watched.site / "real.png", watched.folder / ".real.png.x7")
    (watched.folder / ".real.png.x7").rename(watched.folder / "real.png")
    watched.until(lambda: watched.new == ["real.png"])


def test_pictures_that_came_while_the_agent_was_stopped_are_new(watched: Watched) -> None:
    assert watched.new == []  # the first start
    gone = hash_file(watched.folder / "dog" / "old.png")
    watched.watch.index.save()
    watched.parts.close()
    picture(watched.folder / "new.png", 2)
    (watched.folder / "dog" / "old.png").unlink()
    watched.restart()
    watched.until(lambda: watched.new == ["new.png"])
    watched.until(lambda: watched.removed == [gone])
    watched.restart().settle()
    assert (watched.new, watched.removed) == ([], [])


@pytest.mark.parametrize("how", ["missing", "empty", "empty before a search"])
def test_a_share_that_is_not_mounted_removes_nothing(
    watched: Watched, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    away = watched.site / "away"
    if how == "empty before a search":
        watched.watch._search_at = -1.0
        watched.watch._look_at = time.monotonic() + 100
    watched.folder.rename(away)
    if how != "missing":
        watched.folder.mkdir()
    watched.wait(2 * known_pictures.GONE_S)
    assert watched.removed == []
    shutil.rmtree(watched.folder, ignore_errors=True)
    away.rename(watched.folder)
    picture(watched.folder / "new.png", 2)
    watched.until(lambda: watched.new == ["new.png"])
    picture(watched.folder / "later.png", 3)  # it is watched again
    watched.until(lambda: watched.new == ["new.png", "later.png"])
    watched.settle()
    assert (watched.removed, watched.forgotten) == ([], [])
    printed = capsys.readouterr().out
    assert (printed.count("folder_away"), printed.count("folder_back")) == (1, 1)


def test_another_file_system_without_the_pictures_is_an_unmounted_share(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guard = watched.watch._guards[0]
    assert guard._place is not None
    guard._place = guard._place[0] + 1, guard._place[1]
    away = watched.site / "away"
    watched.folder.rename(away)
    picture(watched.folder / "stray" / "other.png", 9)
    assert watched.watch.is_away()
    watched.wait(2 * known_pictures.GONE_S)
    assert watched.removed == []
    assert "it is on another file system" in capsys.readouterr().out
    shutil.rmtree(watched.folder)
    away.rename(watched.folder)  # mounted again, with another device number
    assert not watched.watch.is_away()


def test_a_folder_that_is_replaced_is_watched_again(watched: Watched) -> None:
    """A watch of the operating system stays at the folder that was moved away."""
    first = picture(watched.site / "inbox" / "a.png", 5)
    gone = hash_file(first)
    watched.until(lambda: watched.new == ["a.png"])
    for number in (1, 2):
        (watched.site / "inbox").rename(watched.site / f"inbox of day {number}")
        (watched.site / "inbox").mkdir()
        if number == 1:  # it is empty: that may be a missing mount
            watched.wait(2 * known_pictures.GONE_S)
        for name in (f"b-{number}.png", f"c-{number}.png"):
            picture(watched.site / "inbox" / name, 20 + 10 * number + ord(name[0]))
            watched.until(functools.partial(watched.has_new, name))
    watched.until(lambda: gone in watched.removed)


def test_an_empty_folder_in_the_place_of_the_inbox_removes_nothing(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(watched.site / "inbox" / "a.png", 5)
    watched.until(lambda: watched.new == ["a.png"])
    (watched.site / "inbox").rename(watched.site / "mounted")
    (watched.site / "inbox").mkdir()
    watched.wait(2 * known_pictures.GONE_S)
    (watched.site / "inbox").rmdir()
    (watched.site / "mounted").rename(watched.site / "inbox")
    watched.settle()
    assert (watched.new, watched.removed) == (["a.png"], [])
    assert capsys.readouterr().out.count("folder_away") == 1


def test_an_inbox_that_is_mounted_after_the_start_has_nothing_new(watched: Watched) -> None:
    picture(watched.site / "inbox" / "a.png", 5)
    watched.until(lambda: watched.new == ["a.png"])
    watched.watch.index.save()
    watched.parts.close()
    (watched.site / "inbox").rename(watched.site / "mounted")
    watched.new.clear()
    watched.start()
    watched.wait(2 * known_pictures.GONE_S)
    (watched.site / "inbox").rmdir()
    (watched.site / "mounted").rename(watched.site / "inbox")
    watched.settle()
    assert (watched.new, watched.removed) == ([], [])


def test_at_the_first_start_old_pictures_are_named_and_none_is_left_out(tmp_path: Path) -> None:
    old = [picture(tmp_path / "pictures" / "dog" / f"{n}.png", n) for n in range(3)]
    (tmp_path / "pictures" / "dog" / "cut.png").write_bytes(b"\x89PNG")  # waits for its end
    index = PictureIndex()
    with FolderWatch(tmp_path / "pictures", None, index) as watch:
        assert not watch.has_read_old()
        found: set[str] = set()
        deadline = time.monotonic() + DEADLINE_S
        while not watch.has_read_old():
            assert time.monotonic() < deadline
            assert len(found) < 4
            changes = watch.changes()
            assert changes.new == ()
            found |= set(changes.old)
            time.sleep(0.02)
    assert found == {hash_file(path) for path in (*old, old[0].with_name("cut.png"))}


def test_a_picture_that_is_not_settled_is_new_at_the_next_start(watched: Watched) -> None:
    watched.restart()
    picture(watched.site / "inbox" / "a.png", 5)
    watched.until(lambda: watched.new == ["a.png"])
    assert watched.settled is not None
    watched.settled.discard(hash_file(watched.site / "inbox" / "a.png"))
    watched.restart()
    watched.until(lambda: watched.new == ["a.png"])
    watched.restart().settle()
    assert watched.new == []


def test_an_inbox_may_be_emptied(watched: Watched) -> None:
    moved = picture(watched.site / "inbox" / "a.png", 5)
    name = hash_file(moved)
    watched.until(lambda: watched.new == ["a.png"])
    moved.rename(watched.site / "elsewhere.png")
    watched.until(lambda: watched.removed == [name])


def test_unchanged_pictures_are_not_read_at_a_restart(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        picture(watched.folder / "dog" / f"{number}.png", 100 + number)
    watched.until(lambda: len(watched.new) == 30)
    long_ago = time.time() + 3600
    watched.watch.index.clock = lambda: long_ago
    for path in (watched.folder / "dog").iterdir():
        path.touch()
    watched.watch._search_at = -1.0
    watched.settle()
    opened = hashed(monkeypatch)
    watched.restart().settle()
    # The audit reads one.
    assert len([path for path in opened if not path.name.startswith("marker")]) <= 1
    assert watched.new == []


def test_the_thread_ends_with_the_watch(watched: Watched) -> None:
    assert any(thread.name == "file events" for thread in threading.enumerate())
    watched.parts.close()
    assert not any(thread.name == "file events" for thread in threading.enumerate())


def test_a_limit_of_the_system_is_said_and_the_folder_is_searched(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> file_events.Changes:
        raise OSError(28, "OS file watch limit reached.")

    watched.watch.events.watch = refuse
    watched.watch.events.start()
    watched.watch._search_at = -1.0
    picture(watched.folder / "new.png", 2)
    watched.until(lambda: watched.new == ["new.png"])
    picture(watched.folder / "second.png", 3)
    watched.until(lambda: watched.new == ["new.png", "second.png"])
    printed = capsys.readouterr().out
    assert printed.count("folder_searched") == 1
    assert "raise fs.inotify.max_user_watches" in printed


def test_names_that_are_not_text(watched: Watched) -> None:
    odd = watched.folder / os.fsdecode(b"\xff\n.png")
    picture(watched.site / "real.png", 6)
    shutil.copy(watched.site / "real.png", odd)
    watched.until(lambda: watched.new == [odd.name])


def test_ten_thousand_pictures_at_once_are_each_reported_once(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is not listed again for each of them."""
    listed: list[object] = []
    for name in ("scandir", "listdir"):
        real = getattr(os, name)

        def counted(path: str, real: Callable[[str], object] = real) -> object:
            listed.append(path)
            return real(path)

        monkeypatch.setattr(os, name, counted)
    for number in range(10_000):
        (watched.site / "inbox" / f"{number}.bmp").write_bytes(b"%d" % number)
    watched.until(lambda: len(watched.new) >= 10_000)
    watched.settle()
    assert sorted(watched.new) == sorted(f"{number}.bmp" for number in range(10_000))
    assert len(listed) < 1000


@pytest.mark.parametrize("how", ["watched", "searched"])
def test_a_pipe_and_a_huge_file_are_left_out_and_others_go_on(
    request: pytest.FixtureRequest, how: str
) -> None:
    watched: Watched = request.getfixturevalue(how)
    said: list[str] = []
    with log.observed(lambda name, fields: said.append(f"{name} {fields.get('reason')}")):
        with pipe_at(watched.site / "inbox" / "pipe.jpg"):
            with (watched.site / "inbox" / "huge.jpg").open("wb") as file:
                file.truncate(2**30)
            watched.settle()
            watched.wait(6)  # longer than it waits for the end of a file
        named = [one for one in said if "a picture has 512 at most" in one]
        assert named == [
            "picture_skipped cannot be read: it has 1024 MiB, and a picture has 512 at most"
        ]
    assert watched.new == []


def test_a_full_disk_does_not_end_the_watch(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself refuses to write here, as on a full disk."""
    monkeypatch.setattr(index_upkeep, "AUDIT_S", 0.1)
    watched = watched.restart()
    database = watched.watch.index._db
    assert database is not None
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    said: list[str] = []
    with log.observed(lambda name, _: said.append(name)):
        for number in range(60):
            picture(watched.site / "inbox" / f"{number}-{'x' * 200}.png", number + 2)
        watched.until(lambda: "picture_index_not_saved" in said and len(watched.new) == 60)
        with pytest.raises(DiskError):
            watched.watch.index.save()
        database.execute(f"PRAGMA max_page_count = {pages + 1000}")
        watched.until(lambda: not watched.watch.upkeep.has_news)
    assert said.count("picture_index_not_saved") == 1
