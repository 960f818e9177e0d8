"""Labels from manifests, side-cars, people and class folders, and what happens if they disagree."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from named_pipe import pipe_at

from fedclip_edge.errors import DataError
from fedclip_edge.vision.datasets import Dataset
from fedclip_edge.vision.device_pictures import read_device
from fedclip_edge.vision.labels import Labels
from fedclip_edge.vision.pictures import picture_hash

CLASSES = ("cat", "dog", "café")


def write(path: Path, content: str = "") -> Path:
    """Write a file; a picture is only read for its hash here, so its name will do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content or str(path), encoding="utf-8")
    return path


def labels(folder: Path, manifest: Path | None = None, **by_person: str) -> Labels:
    """Labels with those that a person gave, by file name."""
    hashes = {picture_hash(str(folder / f"{n}.jpg").encode()): by_person[n] for n in by_person}
    return Labels(folder, CLASSES, manifest, lambda: hashes)


def read(found: Labels, inbox: Path | None = None) -> tuple[dict[str, str], list[str]]:
    """Class by path below the folder, and the paths without a label."""
    dataset = read_device(found, inbox)
    return shown(dataset, dataset.pictures), list(shown(dataset, dataset.unlabelled))


def shown(dataset: Dataset, pictures: object) -> dict[str, str]:
    base = dataset.folder.parent
    return {
        str(picture.path.relative_to(base)): (*CLASSES, "none")[picture.label]
        for picture in (*dataset.pictures, *dataset.unlabelled)
        if picture in pictures  # type: ignore[operator]
    }


def test_class_folders_alone_are_read_as_before(tmp_path: Path) -> None:
    write(tmp_path / "p" / "dog" / "a.jpg")
    assert read(labels(tmp_path / "p")) == ({"p/dog/a.jpg": "dog"}, [])


def test_pictures_beside_the_class_folders_and_in_the_inbox_are_welcome(tmp_path: Path) -> None:
    for name in ("p/dog/a.jpg", "p/b.jpg", "in/c.jpg", "in/dog/d.jpg"):
        write(tmp_path / name)
    found = read(labels(tmp_path / "p"), tmp_path / "in")
    assert found == ({"p/dog/a.jpg": "dog"}, ["p/b.jpg", "in/c.jpg", "in/dog/d.jpg"])


def test_an_inbox_inside_the_folder_counts_once_and_is_not_a_misspelt_class(tmp_path: Path) -> None:
    for name in ("p/dog/a.jpg", "p/in/b.jpg"):
        write(tmp_path / name)
    found = labels(tmp_path / "p")
    assert read(found, tmp_path / "p" / "in") == ({"p/dog/a.jpg": "dog"}, ["p/in/b.jpg"])
    assert not read_device(found, tmp_path / "p" / "in").left_out.unused


@pytest.mark.parametrize("kind", ["csv", "semicolons", "jsonl"])
def test_a_manifest_gives_labels(tmp_path: Path, kind: str) -> None:
    rows = [
        ("p/b.jpg", "dog"),
        ("p/cam 1/c.jpg", "cafe\u0301"),
        (str(tmp_path / "in/d.jpg"), "cat"),
    ]
    for name in ("p/b.jpg", "p/cam 1/c.jpg", "p/cam 1/e.jpg", "in/d.jpg"):
        write(tmp_path / name)
    if kind == "jsonl":
        text = "\n".join(json.dumps({"file": f, "label": n, "by": 3}) for f, n in rows)
    else:
        mark = "," if kind == "csv" else ";"
        text = "\ufeff" + "\n".join(mark.join(row) for row in [("file", "label"), *rows])
    manifest = write(tmp_path / f"labels.{'jsonl' if kind == 'jsonl' else 'csv'}", text)
    assert read(labels(tmp_path / "p", manifest), tmp_path / "in") == (
        {"p/b.jpg": "dog", "p/cam 1/c.jpg": "café", "in/d.jpg": "cat"},
        ["p/cam 1/e.jpg"],
    )


def test_a_manifest_that_changes_is_read_again(tmp_path: Path) -> None:
    write(tmp_path / "p" / "b.jpg")
    manifest = write(tmp_path / "labels.csv", "file,label\np/b.jpg,dog\n")
    found = labels(tmp_path / "p", manifest)
    assert read(found) == ({"p/b.jpg": "dog"}, [])
    write(manifest, "file,label\np/b.jpg,cat\np/b.jpg,\n")
    assert read(found) == ({"p/b.jpg": "cat"}, [])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "picture,label\na,b\n", "the first line must name the columns file and label"),
        ("l.csv", "", "the first line must name the columns file and label"),
        ("l.csv", "file,label\na.jpg\n", "line 2: expected a file and a label"),
        ("l.jsonl", '{"file": "a"}\n{"file": 3, "label": "x"}', "line 2: expected the keys file"),
        ("l.jsonl", "{", "line 1 is not JSON"),
        ("l.jsonl", "[1]", "line 1: expected the keys file and label"),
    ],
)
def test_a_broken_manifest_names_its_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    write(tmp_path / "p" / "dog" / "a.jpg")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read(labels(tmp_path / "p", tmp_path / name))


def test_a_missing_manifest_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "p" / "dog" / "a.jpg")
    with pytest.raises(DataError, match="correct `labels` under"):
        read(labels(tmp_path / "p", tmp_path / "labels.csv"))


def test_side_cars_give_labels_and_other_files_do_not(tmp_path: Path) -> None:
    for name in "abcdefg":
        write(tmp_path / "p" / f"{name}.jpg")
    write(tmp_path / "p" / "a.json", '{"label": " dog "}')
    write(tmp_path / "p" / "b.txt", "cat\nseen by night\n")
    write(tmp_path / "p" / "c.json", '{"iso": 100}')
    write(tmp_path / "p" / "d.json", "{")
    write(tmp_path / "p" / "e.json", "[" * 100_000)
    (tmp_path / "p" / "f.txt").write_bytes(b"\xff\xfe\xff")
    write(tmp_path / "p" / "readme.txt", "cat")
    found = labels(tmp_path / "p")
    unlabelled = [f"p/{name}.jpg" for name in "cdefg"]
    assert read(found) == ({"p/a.jpg": "dog", "p/b.jpg": "cat"}, unlabelled)
    others = [path.name for path in read_device(found, None).left_out.others]
    assert others == ["c.json", "e.json", "readme.txt"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", [".txt", ".json"])
def test_a_side_car_may_have_a_mark(tmp_path: Path, encoding: str, ending: str) -> None:
    write(tmp_path / "p" / "a.jpg")
    text = "café\r\nseen by night" if ending == ".txt" else '{"label": "café"}'
    (tmp_path / "p" / f"a{ending}").write_bytes(text.encode(encoding))
    found = labels(tmp_path / "p")
    assert read(found) == ({"p/a.jpg": "café"}, [])
    assert found.unused == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_manifest_may_have_a_mark(tmp_path: Path, encoding: str) -> None:
    write(tmp_path / "p" / "a.jpg")
    manifest = tmp_path / "p" / "l.csv"
    manifest.write_bytes("file;label\r\na.jpg;café\r\n".encode(encoding))
    assert read(labels(tmp_path / "p", manifest)) == ({"p/a.jpg": "café"}, [])


def test_a_manifest_in_another_encoding_is_refused_with_the_line(tmp_path: Path) -> None:
    write(tmp_path / "p" / "a.jpg")
    manifest = tmp_path / "p" / "l.csv"
    manifest.write_bytes("file;label\na.jpg;café\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"line 2: .*a\.jpg;café.* Save the file as UTF-8"):
        read(labels(tmp_path / "p", manifest))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", "café".encode("latin-1"), "line 1: the byte 0xe9 .* Save the file as UTF-8"),
        ("a.txt", "cat".encode("utf-16-le"), "UTF-16 without a mark; save it as UTF-8"),
        ("a.txt", b"\xff\xfe\xff", "begins as UTF-16 text, but is incomplete"),
        ("a.json", '{"label": "café"}'.encode("latin-1"), "Save the file as UTF-8"),
        ("a.json", b'{"label": dog}', "not valid JSON"),
    ],
)
def test_a_side_car_that_cannot_be_read_is_listed_once(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    """Also if its picture lies in a folder that is asked twice."""
    write(tmp_path / "p" / "monday" / "a.jpg")
    write(tmp_path / "p" / "monday" / "b.jpg")
    write(tmp_path / "p" / "monday" / "b.txt", "dog")
    side_car = tmp_path / "p" / "monday" / name
    side_car.write_bytes(content)
    found = labels(tmp_path / "p")
    assert read(found) == ({"p/monday/b.jpg": "dog"}, ["p/monday/a.jpg"])
    (entry,) = read_device(found, None).left_out.unused
    assert entry.path == side_car
    assert f"the side-car {name}" in entry.reason
    assert re.search(reason, entry.reason)
    assert side_car not in read_device(found, None).left_out.others


def test_the_first_in_the_order_counts_and_the_others_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    for name in ("a", "b", "c", "d"):
        write(folder / f"{name}.jpg")
    for name in ("a", "b"):
        write(folder / f"{name}.txt", "cat")
    write(folder / "dog" / "e.jpg")
    write(folder / "dog" / "e.txt", "cat")
    manifest = write(folder / "l.csv", "file,label\na.jpg,dog\nb.jpg,dog\nc.jpg,dog\n")
    found = labels(folder, manifest, a="café", d="cat")
    assert read(found)[0] == {
        "p/dog/e.jpg": "cat",
        "p/a.jpg": "café",
        "p/b.jpg": "dog",
        "p/c.jpg": "dog",
        "p/d.jpg": "cat",
    }
    assert [(entry.path.stem, entry.reason) for entry in found.overruled] == [
        ("e", "the side-car says 'cat', the folder 'dog'"),
        ("a", "a person says 'café', the manifest 'dog'"),
        ("a", "a person says 'café', the side-car 'cat'"),
        ("b", "the manifest says 'dog', the side-car 'cat'"),
    ]


def test_an_unknown_class_is_listed_with_the_nearest_and_labels_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    write(folder / "dog" / "a.jpg")
    write(folder / "dog" / "a.txt", "dogg")
    write(folder / "b.jpg")
    manifest = write(folder / "l.csv", "file,label\nb.jpg,zebra\ngone.jpg,dog\n")
    found = labels(folder, manifest)
    dataset = read_device(found, None)
    assert (len(dataset.pictures), len(dataset.unlabelled)) == (0, 2)
    reasons = [entry.reason for entry in dataset.left_out.unused]
    assert (
        "the side-car names 'dogg', which is no class of the bundle; did you mean 'dog'?" in reasons
    )
    assert "the manifest names 'zebra', which is no class of the bundle" in reasons
    assert "the labels name it, but it does not exist" in reasons


def test_a_misspelt_class_folder_is_still_an_error(tmp_path: Path) -> None:
    write(tmp_path / "p" / "dogs" / "a.jpg")
    with pytest.raises(DataError, match="did you mean 'dog'"):
        read(labels(tmp_path / "p"))


def test_a_folder_without_a_class_counts_if_one_picture_in_it_has_a_label(tmp_path: Path) -> None:
    write(tmp_path / "p" / "monday" / "a.jpg")
    write(tmp_path / "p" / "monday" / "b.jpg")
    write(tmp_path / "p" / "monday" / "a.txt", "dog")
    write(tmp_path / "p" / "kat" / "c.jpg")
    found = labels(tmp_path / "p")
    assert read(found) == ({"p/monday/a.jpg": "dog"}, ["p/monday/b.jpg"])
    (unused,) = read_device(found, None).left_out.unused
    assert unused.path.name == "kat"
    assert "did you mean 'cat'?" in unused.reason


@pytest.mark.parametrize("ending", [".txt", ".json"])
def test_a_pipe_beside_a_picture_is_no_side_car(tmp_path: Path, ending: str) -> None:
    write(tmp_path / "p" / "dog" / "a.jpg")
    with pipe_at(tmp_path / "p" / "dog" / f"a{ending}"):
        assert read(labels(tmp_path / "p")) == ({"p/dog/a.jpg": "dog"}, [])


def test_a_manifest_whose_first_line_has_no_end_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "p" / "dog" / "a.jpg")
    manifest = write(tmp_path / "labels.csv", "file,label," + "x" * 200_000)
    with pytest.raises(DataError, match="line 1: field larger than field limit"):
        read(labels(tmp_path / "p", manifest))


def test_the_giver_of_a_label_is_named_if_it_counts(tmp_path: Path) -> None:
    names = ("p/dog/a.jpg", "p/dog/b.jpg", "p/dog/c.jpg", "p/d.jpg", "p/e.jpg")
    paths = [write(tmp_path / name) for name in names]
    write(tmp_path / "p" / "dog" / "b.txt", "cat")
    manifest = write(tmp_path / "m.csv", "file,label\np/dog/c.jpg,cat\np/e.jpg,elephant\n")
    hashes = {picture_hash(str(paths[0]).encode()): "cat"}
    found = Labels(tmp_path / "p", CLASSES, manifest, lambda: hashes)
    found.refresh()
    givers = [found.giver(path, picture_hash(str(path).encode())) for path in paths]
    assert givers == ["a person", "the side-car", "the manifest", "", ""]
    hashes.clear()
    found.refresh()
    assert found.giver(paths[0], picture_hash(str(paths[0]).encode())) == "the folder"
