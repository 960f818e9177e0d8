"""Tables of text, for a terminal or a pipe.

Law: every cell is shown in full, and on a terminal no line is wider than the terminal.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from typing import Literal, TextIO

_SIDES: dict[str, Literal["left", "right"]] = {"l": "left", "r": "right"}


def width_of(stream: TextIO) -> int | None:
    """Return the width, in columns, of the terminal behind `stream`; None if it is no terminal."""
    if not stream.isatty():
        return None
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except OSError:
        columns = 0
    return columns or shutil.get_terminal_size().columns


def aligned(
    rows: Sequence[Sequence[str]],
    *,
    left: int = 1,
    gap: str = " ",
    align: str = "",
    width: int | None = None,
    parts: Sequence[Sequence[int]] = (),
    colours: Sequence[str] = (),
) -> str:
    """Format rows as a table with columns as wide as their widest cell.

    The first `left` columns name the row. They are aligned to the left and the others to the right,
    unless `align` gives an "l" or an "r" for each column. A table wider than `width` characters is
    divided into several, one above the other; each repeats the name columns. `parts` groups the
    indices of the other columns: a group is divided only if it is too wide for one table. A cell
    that is still too wide continues in the next line. `colours` has a style of rich for each row,
    for a terminal; without it the text has no escape sequences.
    """
    from rich.cells import cell_len

    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*shown, strict=True)]
    others = range(left, len(widths))
    align = align or "l" * left + "r" * len(others)
    tables: list[list[int]] = [list(others)]
    if width is not None and sum(widths) + len(gap) * (len(widths) - 1) > width:
        tables = _divided(widths, left, len(gap), width, parts or [others])
    texts = []
    for chosen in tables:
        columns = [*range(left), *chosen]
        its = [widths[i] for i in columns]
        if width is not None:
            its = _narrowed(its, left, len(gap), width)
        cells = [[row[i] for i in columns] for row in shown]
        texts.append(_drawn(cells, its, [align[i] for i in columns], len(gap), colours))
    return "\n\n".join(texts)


def _divided(
    widths: Sequence[int], left: int, gap: int, width: int, parts: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Return the indices of the columns of each table, without the name columns.

    The names take up to half of `width`.
    """
    names = sum(widths[:left]) + gap * (left - 1)
    room = width - min(names, width // 2)
    tables: list[list[int]] = [[]]
    used = 0
    for part in parts:
        fits = sum(gap + widths[i] for i in part) <= room
        for unit in [part] if fits else [[i] for i in part]:
            more = sum(gap + widths[i] for i in unit)
            if tables[-1] and used + more > room:
                tables.append([])
                used = 0
            tables[-1] += unit
            used += more
    return [sorted(table) for table in tables]


def _narrowed(widths: Sequence[int], left: int, gap: int, width: int) -> list[int]:
    """Reduce `widths` until the table fits into `width`; return the new widths.

    Name columns are reduced first if they take over half of `width`, otherwise the other columns.
    """
    its = list(widths)
    room = width - gap * (len(its) - 1)
    while sum(its) > room and max(its) > 1:
        names, others = (
            [i for i in side if its[i] > 1] for side in (range(left), range(left, len(its)))
        )
        too_wide = sum(its[:left]) + gap * (left - 1) > width // 2
        its[max((names if too_wide else others) or names or others, key=its.__getitem__)] -= 1
    return its


def _drawn(
    cells: Sequence[Sequence[str]],
    widths: Sequence[int],
    align: Sequence[str],
    gap: int,
    colours: Sequence[str] = (),
) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid()
    for width, side in zip(widths, align, strict=True):
        if table.columns:  # rich's padding differs between versions
            table.add_column(width=gap)
        table.add_column(justify=_SIDES[side], width=max(1, width), overflow="fold")
    for row, colour in zip(cells, colours or [""] * len(cells), strict=True):
        texts = [Text(cell) for cell in row]  # Text: a name in brackets is not markup
        table.add_row(*[each for text in texts for each in ("", text)][1:], style=colour)
    console = Console(
        file=io.StringIO(),
        width=sum(widths) + (gap + 1) * len(widths),  # enough; trailing spaces are removed below
        height=len(cells) + 1,
        color_system="standard" if colours else None,
        force_terminal=bool(colours),
    )
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def printable(text: str) -> str:
    """Escape a name that is not printable: a line break or escape sequence breaks the table."""
    return text if text.isprintable() else ascii(text)[1:-1]
