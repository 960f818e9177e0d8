"""CSV files of boxes, as people and spreadsheet programs write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedclip_edge.errors import ConfigError
from fedclip_edge.pki.box import Box
from fedclip_edge.pki.box_list import read_boxes

BOXES = (Box("cam-01", "yard; north", "/srv/a, b"), Box("cam-02", 'the "hall"', ""))


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "boxes.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        'id,domain,pictures\ncam-01,yard; north,"/srv/a, b"\ncam-02,"the ""hall""",\n',
        # Excel in Europe: semicolons, a byte order mark, CRLF, empty rows at the end
        '\ufeffid;domain;pictures\r\ncam-01;"yard; north";/srv/a, b\r\ncam-02;"the ""hall"""\r\n;;\r\n',
        'id\tdomain\tpictures\ncam-01\tyard; north\t/srv/a, b\ncam-02\t"the ""hall"""',
        # Another order, capitals, spaces, an empty row, a row that ends early
        '\n Pictures , ID,Domain\n\n"/srv/a, b", cam-01 ,yard; north\n,cam-02, "the ""hall"""\n',
    ],
)
def test_what_people_write_is_read(tmp_path: Path, text: str) -> None:
    assert read_boxes(written(tmp_path, text)) == BOXES


def test_only_the_id_is_needed(tmp_path: Path) -> None:
    assert read_boxes(written(tmp_path, "id\ncam-01\n\ncam-02\n")) == (Box("cam-01"), Box("cam-02"))
    assert read_boxes(written(tmp_path, "id,domain\na\nb,hall\n")) == (Box("a"), Box("b", "hall"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; its first row names the columns"),
        ("\n\n", "is empty"),
        ("id,domain\n", "lists no boxes"),
        ("id,domain\n,\n", "lists no boxes"),
        ("cam-01\ncam-02\n", "unknown columns: 'cam-01'; the first row names"),
        ("id,place,folder\na,b,c\n", "unknown columns: 'place', 'folder'"),
        ("id,,domain\na,,b\n", r"unknown columns: '\(empty\)'"),
        ("domain\nyard\n", "needs the column id"),
        ("id,id\na,b\n", "each column once"),
        ("id,domain\ncam-01,a\nCam-02,b\n", "line 3: id 'Cam-02' is not an id"),
        ("id,domain\n,yard\n", "line 2: id '' is not an id"),
        ("domain,id\nyard\n", "line 2: it has no id"),
        ("id\ncoordinator\n", "line 2: the id 'coordinator' is reserved"),
        ("id\na\n\nb\na\n", "line 5: the id 'a' is already in line 2"),
        ("id,domain\na,b, c\n", "line 2: 3 cells under 2 columns; put a cell"),
        (f"id,domain\na,{'x' * 65}\n", "line 2: domain: expected at most 64"),
        ("id,domain,pictures\na,,b\x07\n", "line 2: pictures: expected the path"),
        ('id,domain\na,"b\n', "not a row of CSV"),
        ('id,domain\na,"b"c\n', "line 2: not a row of CSV"),
        (b"id\n\xff\xfe\n", "line 2: .*Save the file as UTF-8"),
    ],
)
def test_what_is_wrong_is_said_with_the_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_boxes(path)
    assert str(path) in str(caught.value)


def test_all_rows_are_checked_and_five_are_named(tmp_path: Path) -> None:
    rows = "\n".join(["id", *(f"CAM-{n}" for n in range(8)), "cam-9"])
    with pytest.raises(
        ConfigError, match=r"nothing was enrolled\. line 2: .*; and 3 more$"
    ) as caught:
        read_boxes(written(tmp_path, rows))
    assert str(caught.value).count("line ") == 5


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv cannot be read: No such file"):
        read_boxes(tmp_path / "none.csv")
