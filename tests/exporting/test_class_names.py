"""Class names that look alike, or that contain characters which nobody sees."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.exporting.class_names import checked_names
from fedclip_edge.records import normalized_name

NFD = "Cafe\u0301"


def refusal(*names: str) -> str:
    with pytest.raises(ValueError, match="entry") as refused:
        checked_names(names)
    return str(refused.value)


def test_names_come_back_in_one_form_and_without_blanks() -> None:
    names = checked_names([f" {NFD} ", "\u00a0tea  cup\t", "\uac00", "\u1112\u1161\u11ab"])
    assert names == ("Caf\u00e9", "tea  cup", "\uac00", "\ud55c")


def test_two_spellings_of_one_name_are_told_apart_by_their_numbers() -> None:
    message = refusal("Caf\u00e9", "tea", NFD)
    assert message == (
        f"the class names 'Caf\u00e9' in entry 1 and '{NFD}' in entry 3 look the same, but are "
        "spelled differently in Unicode (U+00E9 and U+0065 U+0301); keep one"
    )


def test_names_that_differ_only_in_case_are_refused() -> None:
    message = refusal("tea", "Cat", "CAT")
    assert "'Cat' in entry 2 and 'CAT' in entry 3 differ only in upper and lower case" in message
    assert "differ only" in refusal("Straße", "STRASSE")
    assert "keep one" in refusal("cat", "cat ")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("\ufeffcat", "U+FEFF ZERO WIDTH NO-BREAK SPACE"),
        ("c\u200bat", "U+200B ZERO WIDTH SPACE"),
        ("ca\u00adt", "U+00AD SOFT HYPHEN"),
        ("cat\u200f", "U+200F RIGHT-TO-LEFT MARK"),
        ("tea\u00a0cup", "U+00A0 NO-BREAK SPACE"),
        ("tea\tcup", "U+0009"),
        ("tea\u2028cup", "U+2028 LINE SEPARATOR"),
        ("c\u200dat", "U+200D ZERO WIDTH JOINER"),
        ("\ud800at", "U+D800"),
    ],
)
def test_an_invisible_character_is_named(name: str, said: str) -> None:
    message = refusal("tea", name)
    assert message.startswith(f"entry 2: the class name {name!a} contains the invisible")
    assert said in message


def test_joiners_are_part_of_some_words() -> None:
    names = ("می\u200cخواهم", "👩\u200d🔬", "ക്\u200dഷ")
    assert checked_names(names) == names


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_names_are_good_or_refused(names: list[str]) -> None:
    try:
        checked = checked_names(names)
    except ValueError:
        return
    assert len(checked) == len({normalized_name(n).casefold() for n in checked}) == len(names)
    assert all(unicodedata.is_normalized("NFC", n) and n == n.strip() for n in checked)
    assert checked_names(checked) == checked
