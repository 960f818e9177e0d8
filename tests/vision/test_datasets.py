"""Picture folders: one per class, and the split by picture hash."""

from __future__ import annotations

import hashlib
import itertools
import tempfile
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from denied import needs_denial, without_root
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.config.agent import DataConfig
from fedclip_edge.errors import DataError
from fedclip_edge.vision.datasets import Dataset, Picture, Split, read_folder, split
from fedclip_edge.vision.picture_files import EXTENSIONS, LeftOut, Skipped
from fedclip_edge.vision.pictures import picture_hash

CLASSES = ("cat", "dog", "tea cup")


def fill(folder: Path, **names: str) -> Path:
    """Create files for each class; the name is also the content, so equal names are copies."""
    for label, files in names.items():
        inside = folder / label.replace("_", " ")
        inside.mkdir(parents=True)
        for name in files.split():
            path = inside / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(name.encode())
    return folder


def test_reads_classes_in_label_order_and_files_by_name(tmp_path: Path) -> None:
    dataset = read_folder(fill(tmp_path, dog="b.JPG a.png sub/c.webp", cat="z.bmp"), CLASSES)
    assert [(p.path.name, p.label) for p in dataset.pictures] == [
        ("z.bmp", 0),
        ("a.png", 1),
        ("b.JPG", 1),
        ("c.webp", 1),
    ]
    assert dataset.pictures[0].hash == picture_hash(b"z.bmp")
    assert dataset.classes == CLASSES


def test_other_files_are_listed_and_hidden_ones_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, cat="a.png notes.txt .DS_Store .trash/b.png scan.psd", tea_cup="c.jpeg")
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / ".cache").mkdir()
    dataset = read_folder(tmp_path, CLASSES)
    assert [p.path.name for p in dataset.pictures] == ["a.png", "c.jpeg"]
    assert [p.name for p in dataset.left_out.others] == ["README.md", "notes.txt", "scan.psd"]


def test_a_file_that_cannot_be_opened_is_skipped_and_named(tmp_path: Path) -> None:
    fill(tmp_path, cat="a.png")
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    dataset = read_folder(tmp_path, CLASSES)
    assert [p.path.name for p in dataset.pictures] == ["a.png"]
    assert [(s.path.name, s.reason) for s in dataset.left_out.skipped] == [
        ("gone.png", f"it is a link to {tmp_path / 'nowhere.png'}, which does not exist")
    ]


def test_class_folder_without_pictures_is_listed(tmp_path: Path) -> None:
    fill(tmp_path, cat="a.png", dog="notes.txt", dogs="b.png")
    (tmp_path / "tea cup").mkdir()
    dataset = read_folder(tmp_path, CLASSES)
    assert [picture.path.name for picture in dataset.pictures] == ["a.png"]
    empty = f"it has no picture ({', '.join(sorted(EXTENSIONS))})"
    assert dataset.left_out.unused[1:] == (
        (tmp_path / "dog", empty),
        (tmp_path / "tea cup", empty),
    )
    assert "did you mean 'dog'?" in dataset.left_out.unused[0].reason


def test_class_folders_without_any_picture_are_an_error(tmp_path: Path) -> None:
    fill(tmp_path, dog="notes.txt")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "unplugged")
    said = r"no class folder in .* has a readable picture \(.*dog: it has no .*gone.png.*\); add"
    with pytest.raises(DataError, match=said):
        read_folder(tmp_path, CLASSES)


def test_a_class_folder_may_be_a_link_and_a_loop_ends(tmp_path: Path) -> None:
    fill(tmp_path / "disk", cat="a.png b.png")
    (tmp_path / "site" / "dog").mkdir(parents=True)
    (tmp_path / "site" / "cat").symlink_to(tmp_path / "disk" / "cat")
    (tmp_path / "site" / "dog" / "shared").symlink_to(tmp_path / "disk" / "cat")
    (tmp_path / "site" / "tea cup").symlink_to(tmp_path / "site")
    (tmp_path / "disk" / "cat" / "again").symlink_to(tmp_path / "site")
    dataset = read_folder(tmp_path / "site", CLASSES)
    assert [(p.path.name, p.label) for p in dataset.pictures] == [
        ("a.png", 0),
        ("b.png", 0),
        ("a.png", 1),
        ("b.png", 1),
    ]
    assert len(dataset.left_out.unused) == 3
    assert not any("no picture" in reason for _, reason in dataset.left_out.unused)


def test_thumbnails_of_a_network_drive_are_never_pictures(tmp_path: Path) -> None:
    fill(tmp_path, cat="a.png @eaDir/a.jpg", dog="b.png #recycle/c.png Thumbs.db")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "@eaDir").mkdir()
    dataset = read_folder(tmp_path, CLASSES)
    assert [picture.path.name for picture in dataset.pictures] == ["a.png", "b.png"]
    assert dataset.left_out == LeftOut()


def test_a_folder_in_either_unicode_form_is_of_the_class(tmp_path: Path) -> None:
    forms = [unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")]
    for number, (name, written) in enumerate(itertools.product(forms, forms)):
        folder = fill(tmp_path / str(number), **{name: "a.png"})
        names = (written, "dog")
        (picture,) = read_folder(folder, names).pictures
        assert picture.label == 0


@needs_denial
def test_a_class_folder_that_cannot_be_read_is_not_an_empty_one() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        fill(folder, cat="a.png", dog="b.png locked/c.png", tea_cup="d.png")
        for locked in ("cat", "dog/locked", "tea cup/d.png"):
            (folder / locked).chmod(0)
        with without_root():
            dataset = read_folder(folder, CLASSES)
        for locked in ("cat", "dog/locked"):
            (folder / locked).chmod(0o755)
        denied = "cannot be read: Permission denied"
        assert [picture.path.name for picture in dataset.pictures] == ["b.png"]
        assert dataset.left_out == LeftOut(
            skipped=(
                Skipped(folder / "cat", denied),
                Skipped(folder / "dog" / "locked", denied),
                Skipped(folder / "tea cup" / "d.png", denied),
            )
        )


def of_hashes(hashes: list[str], labels: list[int] | None = None) -> Dataset:
    given_labels = labels or [0] * len(hashes)
    pictures = tuple(
        Picture(Path(f"{i}.png"), label, value)
        for i, (value, label) in enumerate(zip(hashes, given_labels, strict=True))
    )
    return Dataset(Path(), CLASSES, pictures, LeftOut())


def hashes_of(side: tuple[Picture, ...]) -> set[str]:
    return {picture.hash for picture in side}


SHARES = st.tuples(st.integers(0, 10), st.integers(0, 10), st.integers(0, 10)).filter(any)
HASHES = st.lists(st.binary(max_size=4).map(picture_hash), max_size=60)


def config(shares: tuple[int, int, int]) -> DataConfig:
    train, validation, test = (share / sum(shares) for share in shares)
    return DataConfig(Path(), train, validation, test)


@given(HASHES, SHARES)
def test_every_picture_is_on_one_side_and_copies_stay_together(
    hashes: list[str], shares: tuple[int, int, int]
) -> None:
    sides = split(of_hashes(hashes), config(shares))
    parts = [sides.train, sides.validation, sides.test]
    assert sum(len(part) for part in parts) == len(hashes)
    assert sum(len(hashes_of(part)) for part in parts) == len(set(hashes))


@given(HASHES, HASHES, SHARES)
def test_a_pictures_side_does_not_depend_on_the_others(
    hashes: list[str], more: list[str], shares: tuple[int, int, int]
) -> None:
    alone = split(of_hashes(hashes), config(shares))
    together = split(of_hashes(more + hashes[::-1]), config(shares))
    for name in ("train", "validation", "test"):
        assert hashes_of(getattr(alone, name)) <= hashes_of(getattr(together, name))


@given(HASHES, SHARES)
def test_a_share_of_nothing_gets_nothing(hashes: list[str], shares: tuple[int, int, int]) -> None:
    sides = split(of_hashes(hashes), config(shares))
    for name, share in zip(("train", "validation", "test"), shares, strict=True):
        assert share > 0 or not getattr(sides, name)


def test_sides_have_about_the_shares_asked_for() -> None:
    hashes = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(20_000)]
    sides = split(of_hashes(hashes), DataConfig(Path(), 0.6, 0.2, 0.2))
    assert len(sides.train) == pytest.approx(12_000, rel=0.03)
    assert len(sides.validation) == pytest.approx(4_000, rel=0.06)
    assert len(sides.test) == pytest.approx(4_000, rel=0.06)


def test_the_split_is_the_one_that_earlier_runs_made() -> None:
    hashes = [picture_hash(str(i).encode()) for i in range(12)]
    sides = split(of_hashes(hashes), DataConfig(Path()))
    names = {"t": sides.train, "v": sides.validation, "e": sides.test}
    where = {p.path.stem: key for key, side in names.items() for p in side}
    assert "".join(where[str(i)] for i in range(12)) == "etvtvttvtvtv"


def test_classes_without_a_test_picture_are_reported() -> None:
    hashes = [picture_hash(str(i).encode()) for i in range(30)]
    everything = of_hashes(hashes, [i % 2 for i in range(30)])
    tested: Split = split(everything, DataConfig(Path()))
    assert tested.classes_without_test == ()
    few = replace(everything, pictures=(*everything.pictures[::2], tested.train[0]))
    labels = {p.label for p in split(few, DataConfig(Path())).test}
    missing = {p.label for p in few.pictures} - labels
    reported = split(few, DataConfig(Path())).classes_without_test
    assert reported == tuple(CLASSES[label] for label in sorted(missing))
    none = split(everything, DataConfig(Path(), 0.5, 0.5, 0.0))
    assert none.classes_without_test == ("cat", "dog")  # "tea cup" has no pictures


def test_reading_again_after_renaming_changes_no_side(tmp_path: Path) -> None:
    fill(tmp_path, cat=" ".join(f"{i}.png" for i in range(40)))
    before = split(read_folder(tmp_path, CLASSES), DataConfig(tmp_path))
    for path in sorted((tmp_path / "cat").iterdir()):
        path.rename(path.with_name(f"x{path.name}"))
    after = split(read_folder(tmp_path, CLASSES), DataConfig(tmp_path))
    assert hashes_of(before.test) == hashes_of(after.test)
    assert hashes_of(before.train) == hashes_of(after.train)


def test_what_rounding_leaves_over_goes_to_the_last_side_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Highest:
        def digest(self) -> bytes:
            return b"\xff" * 32

    pictures = of_hashes([picture_hash(b"a")])
    monkeypatch.setattr(hashlib, "sha256", lambda _: Highest())
    assert split(pictures, DataConfig(Path(), 0.6, 0.3999999, 0.0)).validation
    assert split(pictures, DataConfig(Path(), 0.9999999, 0.0, 0.0)).train
    assert split(pictures, DataConfig(Path())).test
