"""The pictures that an export is judged on, and those that int8 is calibrated on.

Laws: which pictures are taken follows from their bytes alone, so the same folder gives the same
bundle under any file names; a picture that can be calibrated on is not one that is judged on,
as soon as there are enough of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedclip_edge.errors import ConfigError, DataError
from fedclip_edge.exporting.recipe import Precision
from fedclip_edge.records import F32, I64
from fedclip_edge.vision.datasets import EXTENSIONS, files_below
from fedclip_edge.vision.pictures import Preprocessing, decode, picture_hash

LEAST = 64  # pictures that the gate needs: its thresholds were set with as many
# With labels a drop of half a point is judged: two or three pictures of 512.
_GATE, _GATE_LABELLED = 128, 512
_CALIBRATION = 128  # of MobileNetV2, 64 left 4 points fewer neighbours as they were


@dataclass(frozen=True, eq=False)
class GatePictures:
    """Pictures as one encoder takes them."""

    pixels: F32  # (n, 3, S, S), n >= 64: what the gate compares features of
    labels: I64 | None  # (n,), where every picture's class is known
    calibration: F32  # (m, 3, S, S); m = 0 where pictures are good for the gate alone
    skipped: int  # files that could not be decoded
    source: str  # "folder" or "drawn", for the manifest


Draw = Callable[[Preprocessing, Sequence[str]], GatePictures]  # drawn ones, for some classes


def check_calibration(precision: Precision, folder: Path | None) -> None:
    """Raises ConfigError where int8 is asked for without the fleet's pictures, or with too few.

    Before a model is loaded, so files are only counted; `read_pictures` looks into them.
    """
    if folder is None:
        if precision == "int8":
            raise ConfigError(
                "int8 is calibrated on pictures like the fleet's own; give --calibration FOLDER"
            )
    elif len(files := _files(folder)) < LEAST:
        raise ConfigError(_too_few(folder, len(files)))


def calibrated(pictures: GatePictures, precision: Precision) -> str:
    """What a step says of the pictures: ", calibrated on 128 pictures", or nothing."""
    uses = precision in ("int8", "int8-weights") and len(pictures.calibration)
    return f" calibrated on {len(pictures.calibration)} pictures" if uses else ""


def gather(
    folder: Path | None, draw: Draw, preprocessing: Preprocessing, classes: Sequence[str]
) -> GatePictures:
    """The folder's pictures, or drawn ones where none is named; raises like `read_pictures`."""
    if folder is None:
        return draw(preprocessing, classes)
    return read_pictures(folder, preprocessing, classes)


def read_pictures(
    folder: Path, preprocessing: Preprocessing, classes: Sequence[str]
) -> GatePictures:
    """Pictures of `folder` at any depth; reads every file once, to choose by hash.

    A picture's label is the innermost folder named like one of `classes`; labels count only
    where every picture has one. Files that cannot be decoded are skipped and counted. Raises
    ConfigError where the folder cannot be read or fewer than 64 distinct pictures are in it.
    """
    known = {name: label for label, name in enumerate(classes)}
    found: dict[str, tuple[Path, int | None]] = {}
    skipped = 0
    for path in _files(folder):
        above = path.relative_to(folder).parts[:-1]
        label = next((known[part] for part in reversed(above) if part in known), None)
        try:
            found.setdefault(picture_hash(path.read_bytes()), (path, label))
        except OSError:
            skipped += 1
    chosen = [found[key] for key in sorted(found)]
    images = (path.read_bytes() for path, _ in chosen)
    labels = [label for _, label in chosen if label is not None]
    known_all = labels if len(labels) == len(chosen) else None
    pixels, taken, broken = _prepare(images, known_all, preprocessing)
    if len(pixels) < LEAST:
        raise ConfigError(_too_few(folder, len(pixels)))
    # A third at most calibrates; below 96 the gate would be left with too few, and shares.
    apart = len(pixels) * 2 // 3 >= LEAST
    count = min(_CALIBRATION, len(pixels) // 3) if apart else 0
    gate = len(pixels) - count
    return GatePictures(
        pixels=pixels[:gate],
        labels=None if taken is None else taken[:gate],
        calibration=pixels[gate:] if apart else pixels,
        skipped=skipped + broken,
        source="folder",
    )


def from_bytes(
    images: Sequence[bytes], preprocessing: Preprocessing, labels: Sequence[int] | None = None
) -> GatePictures:
    """Drawn pictures, as encoded files: for the gate alone, because int8's ranges must be those
    of the pictures that the fleet sees.

    Raises ConfigError for fewer than 64.
    """
    pixels, taken, broken = _prepare(images, labels, preprocessing)
    if len(pixels) < LEAST:
        raise ConfigError(f"{len(pixels)} drawn pictures are too few; the gate needs {LEAST}")
    return GatePictures(pixels, taken, pixels[:0], broken, "drawn")


def _prepare(
    images: Iterable[bytes], labels: Sequence[int] | None, preprocessing: Preprocessing
) -> tuple[F32, I64 | None, int]:
    """The first pictures that can be decoded, up to what gate and calibration take."""
    most = _CALIBRATION + (_GATE if labels is None else _GATE_LABELLED)
    pixels: list[F32] = []
    places: list[int] = []
    broken = 0
    for place, data in enumerate(images):
        try:
            pixels.append(decode(data, preprocessing))  # (3, S, S)
            places.append(place)
        except DataError:
            broken += 1
        if len(pixels) == most:
            break
    side = preprocessing.image_size
    stacked = np.stack(pixels) if pixels else np.zeros((0, 3, side, side), np.float32)
    taken = None if labels is None else np.array([labels[place] for place in places], np.int64)
    return stacked, taken, broken


def _too_few(folder: Path, count: int) -> str:
    return (
        f"{folder} holds {count} different pictures that can be read, and an export is judged on "
        f"{LEAST} or more; name a folder with more"
    )


def _files(folder: Path) -> list[Path]:
    try:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder; name one with {LEAST} pictures or more")
        return [path for path in files_below(folder) if path.suffix.lower() in EXTENSIONS]
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror or error}") from error
