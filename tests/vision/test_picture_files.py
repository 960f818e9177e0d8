"""The search for pictures: links, loops, unreadable places, and the folders that systems make."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from denied import needs_denial, without_root
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip_edge.vision.picture_files import (
    NAMED,
    Found,
    LeftOut,
    Skipped,
    examples,
    find_pictures,
    is_ignored,
    labels_of,
)


def made(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())
    return paths


def paths_of(found: Found) -> list[Path]:
    return [file.path for file in found.pictures]


def unused(found: Found) -> dict[Path, str]:
    return dict(found.left_out.unused)


def skipped(found: Found) -> dict[Path, str]:
    return dict(found.left_out.skipped)


# --- links ---------------------------------------------------------------------------------------


def test_links_to_folders_and_files_are_followed_at_any_depth(tmp_path: Path) -> None:
    made(tmp_path / "disk", "year/month/a.png", "b.jpg")
    top = tmp_path / "cat"
    (top / "deep").mkdir(parents=True)
    (top / "deep" / "more").symlink_to(tmp_path / "disk" / "year")
    (top / "one.png").symlink_to(tmp_path / "disk" / "b.jpg")
    (tmp_path / "link").symlink_to(top)
    for start in (top, tmp_path / "link"):
        found = find_pictures(start)
        assert paths_of(found) == [start / "one.png", start / "deep" / "more" / "month" / "a.png"]
        assert found.left_out == LeftOut()


@pytest.mark.parametrize("target", ["..", "../..", ".", "../../.."])
def test_a_link_back_is_a_loop_that_ends(tmp_path: Path, target: str) -> None:
    start = tmp_path / "site" / "cat"
    made(start, "day/a.png")
    made(tmp_path, "site/dog/b.png", "other/c.png")
    (start / "day" / "again").symlink_to(target)
    found = find_pictures(start)
    assert paths_of(found) == [start / "day" / "a.png"]
    assert unused(found) == {start / "day" / "again": "it leads back to a folder that it is in"}


def test_a_link_back_through_another_link_is_a_loop(tmp_path: Path) -> None:
    made(tmp_path / "disk" / "cats", "a.png")
    made(tmp_path / "disk", "dogs/b.png")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "cat").symlink_to(tmp_path / "disk" / "cats")
    (tmp_path / "disk" / "cats" / "up").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "cats" / "site").symlink_to(tmp_path / "site")
    found = find_pictures(tmp_path / "site" / "cat")
    assert paths_of(found) == [tmp_path / "site" / "cat" / "a.png"]
    assert set(unused(found)) == {tmp_path / "site" / "cat" / name for name in ("up", "site")}


def test_folders_that_link_to_each_other_are_read_once_each(tmp_path: Path) -> None:
    """Each path through them would be another way: with 30 folders, more than anyone can follow."""
    names = [f"{number:02}" for number in range(30)]
    for name in names:
        made(tmp_path, f"{name}/{name}.png")
        for other in names:
            (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other)
    found = find_pictures(tmp_path)
    assert paths_of(found) == [tmp_path / name / f"{name}.png" for name in names]
    assert len(unused(found)) == 30 * 30


def test_a_folder_counts_under_its_own_name_and_not_again_by_a_link(tmp_path: Path) -> None:
    made(tmp_path, "z/a.png")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    found = find_pictures(tmp_path)
    assert paths_of(found) == [tmp_path / "z" / "a.png"]
    assert unused(found) == {
        tmp_path / "a": f"it leads to {tmp_path / 'z'}, which counts already",
    }


def test_a_file_system_without_inodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.stat

    def stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        mode, _, *others = real(path, follow_symlinks=follow_symlinks)
        return os.stat_result((mode, 0, *others))

    paths = made(tmp_path, "a.png", "b/c.png", "b/d/e.png")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    monkeypatch.setattr(Path, "stat", stat)
    found = find_pictures(tmp_path)
    assert paths_of(found) == paths
    assert set(unused(found)) == {tmp_path / "b" / "loop"}


def test_one_folder_counts_in_each_class_that_links_to_it(tmp_path: Path) -> None:
    made(tmp_path / "disk", "a.png")
    for name in ("cat", "dog"):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "all").symlink_to(tmp_path / "disk")
    found = find_pictures(tmp_path / "site", labels_of(["cat", "dog"]))
    assert [(p.relative_to(tmp_path), label) for p, label in found.pictures] == [
        (Path("site/cat/all/a.png"), 0),
        (Path("site/dog/all/a.png"), 1),
    ]
    assert found.left_out == LeftOut()


# --- what cannot be read -------------------------------------------------------------------------


def test_links_to_nothing_and_in_circles_are_named(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "unplugged" / "disk")
    (tmp_path / "me.png").symlink_to(tmp_path / "me.png")
    found = find_pictures(tmp_path)
    assert skipped(found) == {
        tmp_path / "gone": f"it is a link to {tmp_path / 'unplugged/disk'}, which does not exist",
        tmp_path / "me.png": "cannot be read: Too many levels of symbolic links",
    }


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    found = find_pictures(tmp_path)
    assert skipped(found) == {tmp_path / "a.png": "it is a pipe, a socket or a device, not a file"}


def test_a_folder_too_deep_to_open_is_named(tmp_path: Path) -> None:
    """It has a path longer than the system allows, so not even root can read it by its path."""
    before = Path.cwd()
    name = "d" * 250
    try:
        os.chdir(tmp_path)
        for _ in range(17):
            Path(name).mkdir()
            os.chdir(name)
        Path("a.png").write_bytes(b"a")
        os.chdir(tmp_path)
        made(tmp_path, "b.png")
        found = find_pictures(tmp_path)
    finally:
        os.chdir(before)
    assert paths_of(found) == [tmp_path / "b.png"]
    ((_, reason),) = found.left_out.skipped
    assert reason == "cannot be read: File name too long"


@needs_denial
def test_folders_without_permission_are_named(open_folder: Path) -> None:
    made(open_folder, "a.png", "locked/b.png", "listed/c.png")
    (open_folder / "locked").chmod(0)
    (open_folder / "listed").chmod(0o444)  # its names can be read, and nothing in it
    with without_root():
        found = find_pictures(open_folder)
        alone = find_pictures(open_folder / "locked")
        with pytest.raises(PermissionError):
            (open_folder / "listed" / "c.png").read_bytes()
    (open_folder / "locked").chmod(0o755)
    (open_folder / "listed").chmod(0o755)
    assert paths_of(found) == [open_folder / "a.png", open_folder / "listed" / "c.png"]
    denied = {open_folder / "locked": "cannot be read: Permission denied"}
    assert skipped(found) == skipped(alone) == denied


def test_a_missing_folder_is_named_too(tmp_path: Path) -> None:
    found = find_pictures(tmp_path / "none")
    assert skipped(found) == {tmp_path / "none": "cannot be read: No such file or directory"}


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """An empty folder that every user may enter, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


# --- ignored names -------------------------------------------------------------------------------

SYSTEM = (
    "lost+found",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "$Recycle.Bin",
    "System Volume Information",
    "SYSTEM VOLUME INFORMATION",
    ".Trash-1000",
    ".ipynb_checkpoints",
    "#snapshot",
    "@tmp",
    "@Recycle",
    ".@__thumb",
    "@Recently-Snapshot",
    "__MACOSX",
    ".fseventsd",
    ".Spotlight-V100",
    ".AppleDouble",
    "Network Trash Folder",
    "found.000",
    "FOUND.012",
    "LOST.DIR",
    "~snapshot",
)
PEOPLE = (
    "found",
    "recycled",
    "trash",
    "bin",
    "found.you",
    "thumbs",
    "system",
    "tmp",
    "#1",
    "@home",
)


@pytest.mark.parametrize("name", SYSTEM)
def test_folders_that_systems_make_are_ignored_at_any_depth(tmp_path: Path, name: str) -> None:
    made(tmp_path, "a.png", f"{name}/thumb.jpg", f"deep/{name}/SYNOPHOTO_THUMB_XL.jpg")
    found = find_pictures(tmp_path)
    assert paths_of(found) == [tmp_path / "a.png"]
    assert found.left_out == LeftOut()


@pytest.mark.parametrize("name", PEOPLE)
def test_folders_that_people_make_are_not(tmp_path: Path, name: str) -> None:
    (path,) = made(tmp_path, f"{name}/a.png")
    assert paths_of(find_pictures(tmp_path)) == [path]


def test_files_that_systems_make_are_ignored(tmp_path: Path) -> None:
    names = ("Thumbs.db", "thumbs.DB", "desktop.ini", ".DS_Store", "._a.png", "ehthumbs.db")
    made(tmp_path, *names, "deep/Thumbs.db")
    assert find_pictures(tmp_path) == Found((), LeftOut())


def test_a_class_with_the_name_of_such_a_folder_is_a_class(tmp_path: Path) -> None:
    """Below a class folder the name is the system's again."""
    labels = labels_of(["cat", "lost+found", ".hidden"])
    kept = made(tmp_path, "lost+found/a.png", "home/.hidden/b.png")
    made(tmp_path, "cat/lost+found/c.png", "lost+found/lost+found/d.png", "LOST+FOUND/e.png")
    found = find_pictures(tmp_path, labels)
    assert dict(found.pictures) == {kept[0]: 1, kept[1]: 2}


# --- what a person is shown ----------------------------------------------------------------------


def test_a_few_names_and_the_count() -> None:
    files = tuple(Skipped(Path(f"{n:03}.png"), "the file is empty") for n in range(500))
    locked = Skipped(Path("year"), "cannot be read: Permission denied")
    others = (Path("a.HEIC"), Path("b.txt"), Path("c.heic"), Path("README"))
    lines = LeftOut(others, (*files, locked)).lines()
    assert lines[0] == "skipped 000.png: the file is empty"
    assert lines[NAMED - 1] == "skipped year: cannot be read: Permission denied"
    assert lines[NAMED:] == [
        "skipped 491 more, 501 in all",
        "ignored 4 files that are not pictures (.heic .txt), such as a.HEIC",
    ]
    assert LeftOut().lines() == []
    assert LeftOut(others, (*files, locked)).reasons() == (
        " (skipped 000.png: the file is empty; skipped 001.png: the file is empty; skipped year: "
        "cannot be read: Permission denied; skipped 498 more, 501 in all; ignored 4 files that are "
        "not pictures (.heic .txt), such as a.HEIC)"
    )


def test_every_reason_is_named_before_one_is_named_twice() -> None:
    entries = [Skipped(Path(f"{n}"), "common") for n in range(20)]
    entries += [Skipped(Path(f"{n}"), f"rare {n}") for n in range(20, 24)]
    some = examples(entries)
    assert len(some) == NAMED
    assert some == [*entries[:6], *entries[20:]]


def test_a_name_cannot_move_the_cursor() -> None:
    (line,) = LeftOut(skipped=(Skipped(Path("\x1b[2J\n.png"), "the file is empty"),)).lines()
    assert line == r"skipped \x1b[2J\n.png: the file is empty"


def test_many_kinds_of_files_fit_into_one_line() -> None:
    others = tuple(Path(f"a.{n:03}") for n in range(300))
    assert LeftOut(others).kinds() == ".000 .001 .002 .003 .004 .005 .006 .007 .008 .009 ..."


# --- the law -------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    ["a", "b", "cat", "dog", "@eaDir", ".x", "lost+found", "a.png", "b.JPG", "n.txt", "Thumbs.db"]
)
CLASSES = ("cat", "dog", "lost+found")


@dataclass(frozen=True)
class Step:
    """One entry to create: in the folder number `place`, where `target` is for links."""

    kind: str  # "folder", "locked" (a folder), "file", "link", "broken" (a link), "pipe"
    place: int
    name: str
    target: int


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(2 * ["folder", "file", "link"] + ["locked", "broken", "pipe"]),
        st.integers(0, 20),
        NAMES,
        st.integers(0, 20),
    ),
    max_size=25,
)


@contextmanager
def tree(steps: Sequence[Step]) -> Iterator[tuple[Path, list[Path]]]:
    """A folder with the entries of `steps`, and the folders in it that nobody may read.

    A step whose name is taken is left out.
    """
    with tempfile.TemporaryDirectory() as name:
        top = Path(os.path.realpath(name)) / "top"
        top.mkdir()
        top.parent.chmod(0o755)
        entries = [top]
        locked = []
        for step in steps:
            folders = [path for path in entries if path.is_dir() and not path.is_symlink()]
            path = folders[step.place % len(folders)] / step.name
            if os.path.lexists(path):
                continue
            if step.kind in ("folder", "locked"):
                path.mkdir()
                path.chmod(0o755)
                if step.kind == "locked":
                    locked.append(path)
            elif step.kind == "file":
                path.write_bytes(b"")
            elif step.kind == "link":
                path.symlink_to(entries[step.target % len(entries)])
            elif step.kind == "broken":
                path.symlink_to(top / "nowhere")
            else:
                os.mkfifo(path)
            entries.append(path)
        for path in reversed(locked):
            path.chmod(0)
        yield top, locked
        for path in locked:
            path.chmod(0o755)


@needs_denial
@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_every_entry_is_used_or_listed_or_of_an_ignored_kind(steps: Sequence[Step]) -> None:
    with tree(steps) as (top, locked), without_root():
        found = find_pictures(top, labels_of(CLASSES))
        left_out = found.left_out
        listed = {*left_out.others, *dict(left_out.skipped), *dict(left_out.unused)}
        used = set(paths_of(found))
        assert not used & listed
        assert len(used) + len(listed) == len(found.pictures) + len(left_out.others) + len(
            left_out.skipped
        ) + len(left_out.unused), "something is listed twice"

        def check(folder: Path, *, in_class: bool) -> None:
            """Visit what the search must have visited: a folder, unless it is listed."""
            for path in folder.iterdir():
                name = path.name
                may_be = not in_class and name in CLASSES
                is_class = may_be and (path in listed or path.is_dir())
                if is_ignored(name) and not is_class:
                    assert not any(p == path or path in p.parents for p in used | listed)
                elif path in listed:
                    assert path not in used
                elif path.is_dir():
                    check(path, in_class=in_class or is_class)
                else:
                    assert path in used
                    assert path.is_file()
                    assert path.suffix.lower() in (".png", ".jpg")

        check(top, in_class=False)
        # No file counts twice for a class, except by a link to the file itself.
        real = [(os.path.realpath(path.parent), path.name, label) for path, label in found.pictures]
        assert len(real) == len(set(real))
        # Every real picture counts, wherever links lead; os.walk visits no locked folder.
        places = {(folder, name) for folder, name, _ in real}
        for folder, folders, names in os.walk(top):
            folders[:] = [name for name in folders if not is_ignored(name)]
            for name in names:
                path = Path(folder, name)
                if not is_ignored(name) and not path.is_symlink() and path.is_file():
                    assert (path.suffix.lower() in (".png", ".jpg")) == ((folder, name) in places)
        denied = [path for path, reason in left_out.skipped if reason.endswith("denied")]
        assert locked == [] or denied or any(is_ignored(p) for path in locked for p in path.parts)
        assert find_pictures(top, labels_of(CLASSES)) == found


@settings(max_examples=50, deadline=None)
@given(st.permutations([f"{n}/{m}.png" for n in range(3) for m in range(3)]))
def test_the_order_does_not_depend_on_the_order_on_disk(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made(Path(folder), *names)
        found = [str(path.relative_to(folder)) for path in paths_of(find_pictures(Path(folder)))]
    assert found == sorted(names)
