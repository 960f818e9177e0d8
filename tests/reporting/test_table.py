"""Tables on a terminal: complete cells, and lines within the width."""

from __future__ import annotations

import io
import os
import pty
import struct
from collections import Counter
from fcntl import ioctl
from termios import TIOCSWINSZ

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip_edge.reporting.table import aligned, width_of

HEAD = ("name", "one", "a longer head", "two")
ROWS = (HEAD, ("first", "1.0", "2.0", "333"), ("second one", "-", "22.25", "4"))


def test_without_a_terminal_columns_are_as_wide_as_their_widest_cell() -> None:
    assert aligned(ROWS) == (
        "name       one a longer head two\n"
        "first      1.0           2.0 333\n"
        "second one   -         22.25   4"
    )


def test_columns_can_be_aligned_by_hand() -> None:
    assert aligned([("a", "b", "c"), ("aa", "bb", "cc")], gap="  ", align="rlr") == (
        " a  b    c\naa  bb  cc"
    )


def test_what_is_too_wide_becomes_several_tables_each_with_the_names() -> None:
    assert aligned(ROWS, width=29) == (
        "name       one a longer head\n"
        "first      1.0           2.0\n"
        "second one   -         22.25\n"
        "\n"
        "name       two\n"
        "first      333\n"
        "second one   4"
    )


def test_it_breaks_where_a_part_ends() -> None:
    assert aligned(ROWS, width=29, parts=([1], [2, 3])).startswith("name       one\n")


def test_a_part_that_is_too_wide_by_itself_goes_on_in_the_next_table() -> None:
    assert aligned(ROWS, width=24, parts=([1], [2, 3])) == (
        "name       one\n"
        "first      1.0\n"
        "second one   -\n"
        "\n"
        "name       a longer head\n"
        "first                2.0\n"
        "second one         22.25\n"
        "\n"
        "name       two\n"
        "first      333\n"
        "second one   4"
    )


def test_a_part_that_is_divided_begins_where_there_is_room() -> None:
    first, second = aligned(ROWS, width=26, parts=([3], [1, 2])).split("\n\n")
    assert first.startswith("name       one two\n")
    assert second.startswith("name       a longer head\n")


def test_at_its_own_width_it_stays_whole() -> None:
    assert aligned(ROWS, width=32) == aligned(ROWS)


def test_a_name_that_is_too_long_goes_on_in_the_next_line() -> None:
    text = aligned([("n" * 30, "1.0"), ("m", "2.0")], width=20)
    assert text == "nnnnnnnnnnnnnnnn 1.0\nnnnnnnnnnnnnnn\nm                2.0"


def test_a_long_fact_goes_on_beside_its_name() -> None:
    facts = [("classes", "cat, dog, horse"), ("manifest.json", "1.5 kB")]
    assert aligned(facts, gap="  ", align="ll", width=26) == (
        "classes        cat, dog,\n               horse\nmanifest.json  1.5 kB"
    )


@pytest.mark.parametrize("left", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("width", [1, 5, 9, 20, 30])
def test_however_narrow_every_letter_is_there(width: int, left: int) -> None:
    text = aligned(ROWS, left=left, width=width)
    least = left + 1 + left  # one letter of a name, one of a figure, and the gap between them
    assert max(map(len, text.splitlines())) <= max(width, least)
    there = Counter(character for row in ROWS for cell in row for character in cell)
    there[" "] = 0
    assert not there - Counter(text)


def test_names_are_no_markup_and_break_no_line() -> None:
    text = aligned([("[bold]x[/bold]", "1"), ("a\nb\x1b[2J", "2"), ("caf\udce9", "3")])
    assert text == "[bold]x[/bold] 1\na\\nb\\x1b[2J    2\ncaf\\udce9      3"


def test_letters_that_take_two_columns_count_as_two() -> None:
    assert aligned([("日本", "1"), ("abcd", "2")]) == "日本 1\nabcd 2"


@settings(max_examples=100, deadline=None)
@given(
    st.integers(60, 140),
    st.lists(st.integers(1, 45), min_size=1, max_size=3),
    st.lists(st.integers(1, 14), min_size=1, max_size=12),
)
def test_no_figure_is_missing_at_any_width(
    width: int, names: list[int], figures: list[int]
) -> None:
    rows = [
        [*("n" * size for size in names), *(f"{i}{letter}".rjust(size, letter) for i, size in enumerate(figures))]
        for letter in "abc"
    ]  # fmt: skip
    text = aligned(rows, left=len(names), gap="  ", width=width)
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    for row in rows:
        assert all(words.count(figure) == 1 for figure in row[len(names) :])


def test_the_width_is_that_of_the_terminal_and_none_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "33")
    assert width_of(io.StringIO()) is None
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 24, 71, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        assert width_of(terminal) == 71
    os.close(ours)


@pytest.mark.parametrize("name", ["NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"])
def test_no_setting_of_the_terminal_puts_colours_in(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = aligned(ROWS, width=29)
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("COLUMNS", "10")
    assert aligned(ROWS, width=29) == plain
    assert "\x1b" not in plain
