"""Picture folders: one per class, and the split by picture hash."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.config import DataConfig
from fedclip_edge.errors import DataError
from fedclip_edge.vision.datasets import Dataset, Picture, Split, read_folder, split
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
    assert dataset.absent_classes == ("tea cup",)
    assert dataset.classes == CLASSES


def test_other_files_are_listed_and_hidden_ones_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, cat="a.png notes.txt .DS_Store .trash/b.png scan.tiff", tea_cup="c.jpeg")
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / ".cache").mkdir()
    dataset = read_folder(tmp_path, CLASSES)
    assert [p.path.name for p in dataset.pictures] == ["a.png", "c.jpeg"]
    assert [p.name for p in dataset.ignored] == ["README.md", "notes.txt", "scan.tiff"]


def test_a_file_that_cannot_be_opened_is_skipped_and_named(tmp_path: Path) -> None:
    fill(tmp_path, cat="a.png")
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    dataset = read_folder(tmp_path, CLASSES)
    assert [p.path.name for p in dataset.pictures] == ["a.png"]
    assert [(s.path.name, s.reason) for s in dataset.skipped] == [
        ("gone.png", "cannot be read: No such file or directory")
    ]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pictures does not exist; create it.*cat, dog, tea cup"):
        read_folder(tmp_path / "pictures", CLASSES)


def test_a_file_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "pictures").write_text("")
    with pytest.raises(DataError, match="pictures is a file"):
        read_folder(tmp_path / "pictures", CLASSES)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path} is empty; put the pictures"):
        read_folder(tmp_path, CLASSES)


def test_pictures_beside_no_class_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    with pytest.raises(DataError, match="has no class folder"):
        read_folder(tmp_path, CLASSES)


def test_class_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dog has no picture .*remove the folder"):
        read_folder(fill(tmp_path, cat="a.png", dog="notes.txt"), CLASSES)


def test_folder_that_is_no_class_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"dogs is not named after a class .*did you mean 'dog'\?.*cat, dog, tea"
    ):
        read_folder(fill(tmp_path, cat="a.png", dogs="b.png"), CLASSES)
    with pytest.raises(DataError, match=r"zebra is not named after a class of the bundle; rename"):
        read_folder(fill(tmp_path / "other", zebra="b.png"), CLASSES)


def test_folder_without_permission_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        read_folder(tmp_path, CLASSES)


def of_hashes(hashes: list[str], labels: list[int] | None = None) -> Dataset:
    given_labels = labels or [0] * len(hashes)
    pictures = tuple(
        Picture(Path(f"{i}.png"), label, value)
        for i, (value, label) in enumerate(zip(hashes, given_labels, strict=True))
    )
    return Dataset(Path(), CLASSES, pictures, (), (), ())


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
