"""Files with class names and prompts: errors that would shift labels are refused."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting.inputs import read_class_names, read_prompts
from fedclip_edge.records import normalized_name


@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n", "\n \n\t\n"])
def test_both_kinds_of_file_give_the_same_names(tmp_path: Path, end: str) -> None:
    (tmp_path / "c.txt").write_bytes(f"\ufeffcat\r\n  tea cup {end}".encode())
    (tmp_path / "c.json").write_text('["cat", " tea cup"]')
    assert read_class_names(tmp_path / "c.txt") == ("cat", "tea cup")
    assert read_class_names(tmp_path / "c.json") == ("cat", "tea cup")


_names = st.lists(
    st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1).map(normalized_name),
    min_size=2,
    unique_by=lambda name: normalized_name(name.casefold()),
)


@given(_names)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder: Path = tmp_path_factory.getbasetemp()
    (folder / "c.txt").write_text("\n".join(names), encoding="utf-8")
    (folder / "c.json").write_text(json.dumps(names))
    assert read_class_names(folder / "c.txt") == tuple(names)
    assert read_class_names(folder / "c.json") == tuple(names)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "cat\n\ndog\n", r"c\.txt: line 2 is empty; remove it"),
        ("c.txt", "\ncat\ndog\n", r"c\.txt: line 1 is empty"),
        ("c.json", '["cat", " ", "dog"]', r"c\.json: entry 2 is empty"),
        ("c.json", '["cat", "dog", ""]', r"c\.json: entry 3 is empty"),
        ("c.txt", "cat\ndog\n cat", r"the class name 'cat' is in line 1 and in line 3"),
        ("c.json", '["a", "b", "b"]', r"'b' is in entry 2 and in entry 3; keep one"),
        ("c.txt", "cat\n", r"c\.txt has 1 class name; write two or more"),
        ("c.txt", "", r"c\.txt has no class name"),
        ("c.txt", " \n\n", r"c\.txt has no class name"),
        (
            "c.txt",
            "Café\nCafe\u0301",
            r"c\.txt: .* in line 1 .* in line 2 look .*U\+00E9 and U\+0065",
        ),
        (
            "c.txt",
            "a\n\u200bb",
            r"c\.txt: line 2: the class name '\\u200bb' contains the invisible",
        ),
        ("c.json", '["\u200ba", "b"]', r"c\.json: entry 1: .*U\+200B ZERO WIDTH SPACE; delete it"),
        ("c.json", '["Cat", "cat"]', r"'Cat' in entry 1 and 'cat' in entry 2 differ only in upper"),
        ("c.json", "[]", r"c\.json has no class name"),
        ("c.json", "", r"c\.json, line 1 \(empty\) is not valid JSON: .*; the file is empty"),
        ("c.json", '{"a": 1}', r"c\.json is not a list of class names"),
        ("c.json", "[1, 2]", r"c\.json is not a list of class names"),
        ("c.json", "cat", r"c\.json, line 1 \(cat\) is not valid JSON: .* text needs quotes"),
    ],
)
def test_files_that_would_shift_a_label_are_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_class_names(tmp_path / name)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"none\.txt does not exist; create it, with one class name per line"
    ):
        read_class_names(tmp_path / "none.txt")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_class_names(tmp_path)
    (tmp_path / "latin.txt").write_bytes("Stra\xdfe".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.txt, line 1: .* 0xdf .* the line is: Straße"):
        read_class_names(tmp_path / "latin.txt")


def test_only_the_end_of_a_line_ends_a_name(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\u2028{}\nthe\x0c{}", encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == ("a\u2028{}", "the\x0c{}")


def test_ten_thousand_names_are_read_at_once(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("\n".join(f"thing {i}" for i in range(10_000)))
    start = time.thread_time()  # another program may have the processor meanwhile
    assert len(read_class_names(tmp_path / "c.txt")) == 10_000
    assert time.thread_time() - start < 1


def test_prompts_from_both_kinds_of_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a photo of a {}\nart of the {}.\n")
    (tmp_path / "p.json").write_text('["a photo of a {}", "art of the {}."]')
    expected = ("a photo of a {}", "art of the {}.")
    assert read_prompts(tmp_path / "p.txt") == read_prompts(tmp_path / "p.json") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a {}\na photo\n", r"the prompt 'a photo' needs exactly one \{\}"),
        ("{} and {}", r"needs exactly one \{\} for the class name"),
        ("a {}\n\nthe {}", r"p\.txt: line 2 is empty"),
        ("a {}\na {}", "the prompt 'a {}' is in line 1 and in line 2; keep one"),
        ("", r"p\.txt has no prompt; write one, with \{\} for the class name"),
    ],
)
def test_unusable_prompts_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_prompts(tmp_path / "p.txt")


def test_names_are_read_in_one_unicode_form(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("Cafe\u0301\ntea", encoding="utf-8")
    assert read_class_names(tmp_path / "c.txt") == ("Caf\u00e9", "tea")
