"""The report's examples: test pictures chosen by a seed, their predictions and thumbnails.

Law: a picture is encoded again from its pixels before it is embedded, so that no metadata of its
file gets into the report.
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
    """A test picture with its predictions: `before` is zero-shot, `after` is federated."""

    device: str
    picture: Path
    label: str
    before: str
    after: str

    @property
    def kind(self) -> Kind:
        """The effect of adapting on the prediction."""
        if self.after == self.label:
            return "right" if self.before == self.label else "fixed"
        return "broken" if self.before == self.label else "still wrong"


def choose_examples(predictions: Mapping[str, Path], per_device: int, seed: int) -> list[Example]:
    """Choose at most `per_device` test pictures of each device; `seed` makes the choice repeatable.

    `predictions` maps a device to its predictions.csv with the columns picture, label, zero_shot
    and federated. The numbers of pictures of the kinds (right, fixed, ...) are in proportion to
    their counts in the file. Each kind that occurs gets at least one picture, if `per_device` is
    large enough for one of each.

    Raises DataError, which names the file, if it is missing or is not such a table.
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
    """Encode the picture as a data: URI with a PNG or JPEG; None if it cannot be read.

    Its longer side is at most THUMBNAIL_PX. The JPEG quality is lowered, down to 40, until the data
    fits into THUMBNAIL_BYTES. EXIF orientation is ignored and transparency dropped, as for
    the encoder.
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
    bare = Image.new("RGB", picture.size)  # without the file's comment, colour profile or location
    bare.paste(picture)
    png = _encoded(bare, "PNG", optimize=True)
    for quality in (82, 65, 40):
        jpeg = _encoded(bare, "JPEG", quality=quality, optimize=True)
        if min(len(jpeg), len(png)) <= THUMBNAIL_BYTES:
            break
    kind, data = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _read_predictions(device: str, path: Path) -> list[Example]:
    """Read the rows, sorted by picture, so that the choice does not depend on their order."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file, strict=True)
            if missing := [name for name in _COLUMNS if name not in (rows.fieldnames or ())]:
                raise DataError(
                    f"{path} is not a table of predictions: it has no column {missing[0]!r}; "
                    "delete it and run the demo again"
                )
            found = []
            for row in rows:
                picture, label, before, after = (row[name] for name in _COLUMNS)
                if not (picture and label and before and after):
                    raise DataError(
                        f"{path}: line {rows.line_num} is incomplete; delete the file and run the "
                        "demo again"
                    )
                found.append(Example(device, Path(picture), label, before, after))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}; run the demo again"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} is not a table of predictions: {error}; delete it and run the demo again"
        ) from error
    return sorted(found, key=lambda example: str(example.picture))


def _seats(counts: Sequence[int], seats: int) -> list[int]:
    """Divide `seats` in proportion to `counts`; each count above 0 gets one, if there is room."""
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
