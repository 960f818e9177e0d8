"""Quoting of other libraries' errors in messages."""

from __future__ import annotations

import pytest

from fedclip_edge.errors import reason_of


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("no such file", "no such file"),
        ("  first line\n\n\tsecond line  \n", "first line second line"),
        ("x" * 5000 + " cause", "x" * 5000 + " cause"),
        (" \n ", "RuntimeError"),
    ],
)
def test_all_words_of_an_error_are_quoted_on_one_line(text: str, quoted: str) -> None:
    assert reason_of(RuntimeError(text)) == quoted
