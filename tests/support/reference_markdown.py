"""Markdown for the generated reference pages, as GitHub and mkdocs both read it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"(`[^`]*`)")
_LINK = re.compile(r"(\[`?[^\]\[]*`?\]\([^)\s]+\))")


def notice(source: str) -> str:
    """The first sentence of a generated page; `source` says what it is made from."""
    return (
        f"This page is generated from {source} by `python tests/support/reference_pages.py "
        "--write`; do not edit it by hand."
    )


def prose(text: str) -> str:
    """Plain text with `code` and [links](page.md), with no other character taken for Markdown."""
    pieces = []
    for piece in _LINK.split(text):
        if _LINK.fullmatch(piece):
            pieces.append(piece)
            continue
        pieces += [
            code(part[1:-1]) if _CODE.fullmatch(part) else _escaped(part)
            for part in _CODE.split(piece)
        ]
    return "".join(pieces)


def code(text: str) -> str:
    """`text` in a code span; a bar would end a cell of a table, so it is written as an entity."""
    if "|" not in text:
        return f"`{text}`"
    return "<code>" + _escaped(text).replace("\\", "") + "</code>"


def any_of(values: Iterable[str]) -> str:
    """`a`, `b` or `c`, each as code."""
    *first, last = [code(value) for value in values]
    return f"{', '.join(first)} or {last}" if first else last


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [tuple(header), tuple("---" for _ in header), *map(tuple, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fenced(text: str, language: str = "") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def page(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _escaped(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return re.sub(r"[\\*\[\]~]|\b_|_\b", r"\\\g<0>", text)
