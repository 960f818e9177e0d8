from __future__ import annotations

from pathlib import Path

import pytest

from fedclip_edge.agent.page.answered import Answered
from fedclip_edge.agent.page.catalogue import Entry
from fedclip_edge.agent.page.shown import Filter, is_unsure, part_of


def entry(
    label: str = "", shares: tuple[float, ...] = (0.9, 0.1), *, unknown: bool = False
) -> Entry:
    names = ("cat", "dog")
    likeliest = tuple(zip(names, shares, strict=False))
    answer = Answered(0.0, likeliest, unknown, "fleet", "run-1") if shares else None
    return Entry("0" * 20, "0" * 64, Path("a.jpg"), 0.0, label, "", False, "", True, answer)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, ["sure", "close", "unknown", "dog", "none"]),
        ({"class": "cat"}, ["sure", "close"]),
        ({"class": "dog"}, ["dog"]),
        ({"show": "unlabelled"}, ["sure", "close", "unknown", "none"]),
        ({"show": "unsure"}, ["close"]),
        ({"show": "unknown"}, ["unknown"]),
        ({"show": "unknown", "class": "cat"}, []),
        ({"show": "nonsense"}, ["sure", "close", "unknown", "dog", "none"]),
    ],
)
def test_a_filter_keeps_the_pictures_that_are_asked_for(
    query: dict[str, str], found: list[str]
) -> None:
    entries = {
        "sure": entry(),
        "close": entry(shares=(0.55, 0.45)),
        "unknown": entry(shares=(0.51, 0.49), unknown=True),
        "dog": entry("dog"),
        "none": entry(shares=()),
    }
    wanted = Filter.of(query)
    assert [name for name, one in entries.items() if wanted.matches(one)] == found


def test_a_class_alone_is_never_close() -> None:
    assert not is_unsure(entry(shares=(0.1,)))


def test_an_address_has_what_was_asked_for_and_no_more() -> None:
    assert Filter().address() == "/"
    assert Filter("a&b", "unsure").address(3) == "/?class=a%26b&show=unsure&page=3"


@pytest.mark.parametrize(
    ("number", "page", "items"),
    [("", 1, "abc"), ("2", 2, "def"), ("3", 3, "g"), ("9", 3, "g"), ("0", 1, "abc"),
     ("-1", 1, "abc"), ("x", 1, "abc"), ("9" * 5000, 1, "abc"), ("\u0662", 2, "def")],
)  # fmt: skip
def test_a_part_has_its_items_and_a_wrong_number_gives_the_nearest(
    number: str, page: int, items: str
) -> None:
    part = part_of("abcdefg", number, 3)
    assert (part.number, part.pages, part.total, part.items) == (page, 3, 7, items)
    assert part_of("", number, 3).pages == 1
