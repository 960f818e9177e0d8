"""Long names, such as a method with its options, in several lines."""

from __future__ import annotations

import re
import unicodedata

# Not at the minus sign of 1e-3, and not between an option and its value.
_PIECES = re.compile(r"(?:[^\s,@:/_-]|-(?=\d))*.", re.DOTALL)


def pieces(name: str) -> list[str]:
    """Divide a name behind its punctuation, where a line may end."""
    return _PIECES.findall(name)


def wrapped(name: str, columns: int) -> list[str]:
    """Divide a name into lines of at most `columns`; a piece that is longer is divided anywhere.

    There is at least one line.
    """
    lines = [""]
    for piece in pieces(name):
        if columns_of(lines[-1] + piece) <= columns:
            lines[-1] += piece
            continue
        lines += [""] * bool(lines[-1])
        for character in piece:
            if columns_of(lines[-1] + character) > columns:
                lines.append("")
            lines[-1] += character
    return lines


def columns_of(text: str) -> int:
    """Return the width of the text in Latin letters; wide East Asian characters count twice."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
