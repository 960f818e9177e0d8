"""A list of boxes to enroll, from a CSV file such as a spreadsheet program writes.

The first row names the columns: `id`, and perhaps `domain` and `pictures`. Commas, semicolons or
tabs separate the cells. Empty rows are left out.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedclip_edge.errors import ConfigError
from fedclip_edge.pki.box import Box
from fedclip_edge.storage.text_file import read_text

_COLUMNS = ("id", "domain", "pictures")
_SEPARATORS = ";,\t"
_NAMED = 5  # wrong rows in one message


def read_boxes(path: Path) -> tuple[Box, ...]:
    """The boxes in the file `path`, in its order.

    Raises ConfigError if the file cannot be read, has a wrong heading or no box, or if a row is
    wrong or repeats an id; it names up to five wrong rows.
    """
    rows = _rows(path, _text(path))
    heading = next(rows, None)
    if heading is None:
        raise ConfigError(f"{path} is empty; its first row names the columns: id,domain,pictures")
    columns = _columns(path, heading[1])
    boxes: dict[str, Box] = {}
    first: dict[str, int] = {}
    wrong = []
    for line, cells in rows:
        if len(cells) > len(columns):
            wrong.append(
                f"line {line}: {len(cells)} cells under {len(columns)} columns; put a cell that "
                "contains the separator in quotes"
            )
            continue
        try:
            box = Box(**dict(zip(columns, cells, strict=False)))
        except (TypeError, ValueError) as error:  # TypeError: the row ends before the id
            why = str(error) if isinstance(error, ValueError) else "it has no id"
            wrong.append(f"line {line}: {why}")
            continue
        if box.id in first:
            wrong.append(f"line {line}: the id {box.id!r} is already in line {first[box.id]}")
        first.setdefault(box.id, line)
        boxes.setdefault(box.id, box)
    if wrong:
        more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise ConfigError(
            f"{path} was not used, and nothing was enrolled. {'; '.join(wrong[:_NAMED])}{more}"
        )
    if not boxes:
        raise ConfigError(f"{path} lists no boxes; write one row for each box below the heading")
    return tuple(boxes.values())


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}; name the CSV file of the boxes"
        ) from None


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, each with the number of the line on which it ends."""
    heading = text.lstrip("\r\n").partition("\n")[0]
    separator = max(_SEPARATORS, key=heading.count) if text else ","
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise ConfigError(
            f"{path}, line {reader.line_num}: not a row of CSV ({error}); check its quotes"
        ) from None


def _columns(path: Path, heading: Sequence[str]) -> list[str]:
    names = [name.lower() for name in heading]
    expected = "the first row names the columns id, domain and pictures"
    unknown = [name or "(empty)" for name in heading if name.lower() not in _COLUMNS]
    if unknown:
        listed = ", ".join(repr(name) for name in unknown)
        raise ConfigError(f"{path} has unknown columns: {listed}; {expected}")
    if "id" not in names or len(set(names)) < len(names):
        raise ConfigError(
            f"{path} needs the column id, and each column once; it has {', '.join(names)}; "
            f"{expected}"
        )
    return names
