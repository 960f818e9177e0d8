"""The report's examples: test pictures drawn by a seed, what was predicted of each, and thumbnails.

Law: a picture is drawn anew before it is embedded, so nothing that a camera noted in its file
travels with the report.
"""

from __future__ import annotations

import base64
import csv
import io
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from fedclip_edge.errors import DataError

Kind = Literal["fixed", "broken", "right", "still wrong"]
KINDS: tuple[Kind, ...] = ("fixed", "broken", "right", "still wrong")
_COLUMNS = ("picture", "label", "zero_shot", "federated")

THUMBNAIL_PX = 96
THUMBNAIL_BYTES = 6_000  # 60 of them in base64 are 480 kB, which leaves the page below 600 kB


@dataclass(frozen=True)
class Example:
    """One test picture, and what was predicted of it: before is zero-shot, after federated."""

    device: str
    picture: Path
    label: str
    before: str
    after: str

    @property
    def kind(self) -> Kind:
        """What adapting did to it."""
        if self.after == self.label:
            return "right" if self.before == self.label else "fixed"
        return "broken" if self.before == self.label else "still wrong"


def choose_examples(predictions: Mapping[str, Path], per_device: int, seed: int) -> list[Example]:
    """At most `per_device` test pictures of each device, drawn by `seed`; fixed ones first.

    `predictions` maps a device to its predictions.csv with the columns picture, label, zero_shot
    and federated. Of each kind as many as its share in the whole file asks for, at least one where
    it occurs and there is room for every kind that does.

    Raises DataError, naming the file, where one is missing or is no such table.
    """
    chosen = []
    for device, path in predictions.items():
        examples = _read_predictions(device, path)
        kinds = {kind: [e for e in examples if e.kind == kind] for kind in KINDS}
        seats = _seats([len(kinds[kind]) for kind in KINDS], per_device)
        for kind, count in zip(KINDS, seats, strict=True):
            chosen += random.Random(f"examples/{seed}/{device}/{kind}").sample(kinds[kind], count)
    return chosen


def thumbnail(path: Path) -> str | None:
    """The picture as a data: URI, small; None where it cannot be read.

    Turned neither way by EXIF and without transparency, as the encoder sees it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                opened.draft("RGB", (2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
                picture = opened.convert("RGBA" if opened.mode == "P" else "RGB").convert("RGB")
    except Exception:  # noqa: BLE001 - a broken file can fail anywhere inside Pillow's decoders
        return None
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    bare = Image.new("RGB", picture.size)  # has no comment, profile or place of the picture's
    bare.paste(picture)
    png = _encoded(bare, "PNG", optimize=True)
    for quality in (82, 65, 40):
        jpeg = _encoded(bare, "JPEG", quality=quality, optimize=True)
        if min(len(jpeg), len(png)) <= THUMBNAIL_BYTES:
            break
    kind, data = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _read_predictions(device: str, path: Path) -> list[Example]:
    """The rows in the order of their pictures, so that a choice does not hang on the file's."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file, strict=True)
            if missing := [name for name in _COLUMNS if name not in (rows.fieldnames or ())]:
                raise DataError(f"{path} is no table of predictions: no column {missing[0]!r}")
            found = []
            for row in rows:
                picture, label, before, after = (row[name] for name in _COLUMNS)
                if not (picture and label and before and after):
                    raise DataError(f"{path}: line {rows.line_num} is not complete")
                found.append(Example(device, Path(picture), label, before, after))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no table of predictions: {error}") from error
    return sorted(found, key=lambda example: str(example.picture))


def _seats(counts: Sequence[int], seats: int) -> list[int]:
    """Shares `seats` out in proportion to `counts`; one to each that is not 0, if there is room."""
    seats = max(0, min(seats, sum(counts)))
    occurring = [int(count > 0) for count in counts]
    given = occurring if sum(occurring) <= seats else [0] * len(counts)
    due = [seats * count / max(sum(counts), 1) for count in counts]
    while sum(given) < seats:
        short = [d - g if g < count else -math.inf
                 for d, g, count in zip(due, given, counts, strict=True)]  # fmt: skip
        given[short.index(max(short))] += 1
    return given


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
