"""Class folders and domain folders: what is found, what is listed, and what is an error."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from fedclip_edge.errors import DataError
from fedclip_edge.vision.class_folders import find_class_folders, find_domains
from fedclip_edge.vision.picture_files import LeftOut, Skipped

CLASSES = ("cat", "dog", "tea cup", "café")
NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def made(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def test_class_folders_come_in_the_order_of_their_labels(tmp_path: Path) -> None:
    made(tmp_path, "tea cup/a.png", "dog/b.png", "disk/cats/c.png")
    (tmp_path / "cat").symlink_to(tmp_path / "disk" / "cats")
    made(tmp_path, f"{NFD}/d.png", f"{NFC}/e.png")
    found = find_class_folders(tmp_path, CLASSES).found
    assert [(label, path.name) for label, path in found] == [
        (0, "cat"),
        (1, "dog"),
        (2, "tea cup"),
        (3, NFD),
        (3, NFC),
    ]


def test_folders_and_files_beside_them_are_listed(tmp_path: Path) -> None:
    made(tmp_path, "cat/a.png", "dogs/b.png", "dogs/c.png", "Tea Cup/d.png", "zebra/n.txt")
    made(tmp_path, "stray.jpg", "README.md", "lost+found/e.png", "@eaDir/f.png", ".cache/g.png")
    (tmp_path / "dog").symlink_to(tmp_path / "unplugged")
    left_out = find_class_folders(tmp_path, CLASSES).left_out
    assert left_out.others == (tmp_path / "README.md",)
    gone = f"it is a link to {tmp_path / 'unplugged'}, which does not exist"
    assert left_out.skipped == ((tmp_path / "dog", gone),)
    no_class = "it is not named after a class of the bundle"
    assert dict(left_out.unused) == {
        tmp_path / "stray.jpg": "it is not in a class folder",
        tmp_path / "Tea Cup": f"{no_class}; did you mean 'tea cup'? (1 picture)",
        tmp_path / "dogs": f"{no_class}; did you mean 'dog'? (2 pictures)",
        tmp_path / "zebra": no_class,
    }


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pictures does not exist; create it.*cat, dog, tea cup"):
        find_class_folders(tmp_path / "pictures", CLASSES)


def test_a_file_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "pictures").write_text("")
    with pytest.raises(DataError, match="pictures is a file"):
        find_class_folders(tmp_path / "pictures", CLASSES)


def test_folder_in_a_circle_of_links(tmp_path: Path) -> None:
    (tmp_path / "pictures").symlink_to(tmp_path / "pictures")
    with pytest.raises(DataError, match="cannot be read: Too many levels of symbolic links"):
        find_class_folders(tmp_path / "pictures", CLASSES)


@pytest.mark.parametrize("name", ["", ".cache/a.png", "lost+found/b.png"])
def test_empty_folder(tmp_path: Path, name: str) -> None:
    if name:
        made(tmp_path, name)
    with pytest.raises(DataError, match=f"{tmp_path} is empty; put the pictures"):
        find_class_folders(tmp_path, CLASSES)


def test_pictures_beside_no_class_folder(tmp_path: Path) -> None:
    made(tmp_path, "a.png")
    (tmp_path / "cat").symlink_to(tmp_path / "unplugged")
    with pytest.raises(DataError, match=r"has no class folder; put .*cat: it is a link to"):
        find_class_folders(tmp_path, CLASSES)


def test_unknown_folders_alone_are_an_error_that_names_the_nearest_class(tmp_path: Path) -> None:
    no_class = "is not named after a class of the bundle"
    with pytest.raises(
        DataError, match=rf"dogs {no_class}; did you mean 'dog'\? Rename .*cat, dog, tea cup"
    ):
        find_class_folders(made(tmp_path / "one", "dogs/b.png"), CLASSES)
    with pytest.raises(DataError, match=rf"zebra {no_class}; rename"):
        find_class_folders(made(tmp_path / "other", "zebra/b.png"), CLASSES)
    many = made(tmp_path / "many", "ant/a.png", "KATZE/b.png", "DOG/c.png", "zebra/b.png")
    with pytest.raises(DataError, match=rf"DOG {no_class}, nor is any other folder in .*'dog'\?"):
        find_class_folders(many, CLASSES)


def test_a_folder_of_domains_is_an_error_that_names_one(tmp_path: Path) -> None:
    made(tmp_path, "photo/cat/a.png", "sketch/dog/b.png")
    with pytest.raises(DataError, match=r"its folder photo has one \(cat\); .* such as .*/photo"):
        find_class_folders(tmp_path, CLASSES)


def test_domains_are_the_folders_with_class_folders(tmp_path: Path) -> None:
    made(tmp_path, "photo/cat/a.png", f"sketch/{NFD}/b.png", "misc/c.png", "stray.png", "n.txt")
    made(tmp_path, "@eaDir/cat/d.png", "#recycle/dog/e.png", "dog/f.png", "dog/deep/g.png")
    made(tmp_path, ".disk/cat/h.png")
    (tmp_path / "linked").symlink_to(tmp_path / ".disk")
    found = find_domains(tmp_path, CLASSES)
    assert [path.name for path in found.domains] == ["linked", "photo", "sketch"]
    assert found.class_folders == (tmp_path / "dog",)
    assert found.left_out == LeftOut(
        others=(tmp_path / "n.txt",),
        unused=(
            Skipped(tmp_path / "stray.png", "it is not in a class folder of a domain"),
            Skipped(tmp_path / "misc", "it has no folder that is named after a class"),
        ),
    )


def test_a_folder_with_several_names_is_one_domain(tmp_path: Path) -> None:
    """Otherwise a device would train on the pictures of the domain that is held out."""
    made(tmp_path, "data/photo/cat/a.png", "disk/cat/b.png")
    data = tmp_path / "data"
    for name in ("a", "copy"):
        (data / name).symlink_to(tmp_path / "disk")
    (data / "best").symlink_to("photo")
    found = find_domains(data, CLASSES)
    assert found.domains == (data / "a", data / "photo")
    assert found.left_out == LeftOut(
        unused=(
            Skipped(data / "best", f"it leads to {data / 'photo'}, which counts already"),
            Skipped(data / "copy", f"it leads to {data / 'a'}, which counts already"),
        ),
    )


def test_no_domains(tmp_path: Path) -> None:
    assert find_domains(tmp_path, CLASSES).domains == ()
    with pytest.raises(DataError, match="does not exist"):
        find_domains(tmp_path / "none", CLASSES)
