"""Checks of the class names of a new bundle: names that look alike, and invisible characters.

Law: two names of a bundle differ in more than their Unicode form and upper or lower case. Folders
are named after classes, and file systems and text towers do not tell such names apart.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from fedclip_edge.records import normalized_name
from fedclip_edge.storage.text_file import INVISIBLE, code_point

_JOINERS = "\u200c\u200d"  # part of the spelling of words in Persian and Hindi, and of emoji


def checked_names(entries: Sequence[str], unit: str = "entry") -> tuple[str, ...]:
    """Return the class names in `entries`, without blanks around them and in Unicode form NFC.

    `unit` is the word for the place of a name in its file, such as "line". Raises ValueError, which
    names the place, for a name that is empty or has an invisible character, and for two names that
    are equal, or differ only in their Unicode form or in upper and lower case.
    """
    seen: dict[str, tuple[int, str]] = {}  # by folded name: the place, and the name as it was given
    for number, entry in enumerate(entries, 1):
        given = entry.strip()
        if not given:
            raise ValueError(f"{unit} {number} is empty; remove it")
        if hidden := _hidden(given):
            raise ValueError(
                f"{unit} {number}: the class name {given!a} contains the invisible character "
                f"{hidden}; delete it, or type an ordinary space"
            )
        folded = normalized_name(normalized_name(given).casefold())
        if folded in seen:
            first, other = seen[folded]
            raise ValueError(_alike(other, given, f"{unit} {first}", f"{unit} {number}"))
        seen[folded] = (number, given)
    return tuple(normalized_name(given) for _, given in seen.values())


def _hidden(name: str) -> str | None:
    """The first character of `name` that cannot be seen, apart from ordinary spaces."""
    for i, c in enumerate(name):
        if c in _JOINERS and not name[i - 1 : i].isascii() and not name[i + 1 : i + 2].isascii():
            continue
        if c != " " and unicodedata.category(c) in INVISIBLE:
            return code_point(c)
    return None


def _alike(first: str, second: str, one: str, other: str) -> str:
    if first == second:
        return f"the class name {first!r} is in {one} and in {other}; keep one"
    if normalized_name(first) != normalized_name(second):
        return (
            f"the class names {first!r} in {one} and {second!r} in {other} differ only in upper and "
            "lower case, which text towers and file systems may not tell apart; rename one"
        )
    start = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
    return (
        f"the class names {first!r} in {one} and {second!r} in {other} look the same, but are spelled "
        f"differently in Unicode ({_points(first, start)} and {_points(second, start)}); keep one"
    )


def _points(name: str, start: int) -> str:
    """The numbers of up to 3 characters from `start` on."""
    return " ".join(f"U+{ord(c):04X}" for c in name[start : start + 3])
