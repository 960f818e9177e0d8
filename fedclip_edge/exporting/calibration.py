"""Pictures for the parity gate of an export and for the calibration of int8.

Laws:

- The choice of pictures depends only on their bytes, so the same pictures give the same bundle
  under any file names.
- With 96 pictures or more, no picture is used for both the calibration and the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedclip_edge.errors import ConfigError, DataError
from fedclip_edge.exporting.recipe import Precision
from fedclip_edge.records import F32, I64
from fedclip_edge.vision.picture_files import (
    Found,
    LeftOut,
    Skipped,
    find_pictures,
    labels_of,
    unreadable,
)
from fedclip_edge.vision.pictures import Preprocessing, decode, picture_hash

LEAST = 64  # fewest pictures that the gate accepts, because its thresholds were set with 64
# With labels the gate also limits the loss of accuracy to 0.5 points. With 512 pictures, this is
# 2.6 pictures; with 128, it would be less than one.
_GATE, _GATE_LABELLED = 128, 512
_CALIBRATION = 128  # 64 cost MobileNetV2 4 points of nearest-neighbour agreement


@dataclass(frozen=True, eq=False)
class GatePictures:
    """Prepared pictures for one encoder, split between the gate and the calibration."""

    pixels: F32  # (N, 3, S, S), N >= 64: the pictures of the gate
    labels: I64 | None  # (N,); None unless every picture's class is known
    calibration: F32  # (M, 3, S, S); M = 0 if the pictures are for the gate only
    left_out: LeftOut  # what was found in a folder and is not used
    source: str  # "folder" or "drawn", for the manifest


Draw = Callable[[Preprocessing, Sequence[str]], GatePictures]  # draws pictures of classes


def check_calibration(precision: Precision, folder: Path | None) -> None:
    """Raise ConfigError for int8 without a folder, or for a folder with fewer than 64 pictures.

    This check runs before a model is loaded, so it only counts files; `read_pictures` decodes them.
    """
    if folder is None:
        if precision == "int8":
            raise ConfigError(
                "int8 needs pictures like the fleet's own for its calibration; give --calibration "
                "FOLDER"
            )
    elif (count := len((found := _find(folder, ())).pictures)) < LEAST:
        held = f"{count} picture file{'s' * (count != 1)}"
        raise ConfigError(_too_few(folder, held, found.left_out))


def calibrated(pictures: GatePictures, precision: Precision) -> str:
    """Text for the end of a message: " calibrated on 128 pictures", or "" without calibration."""
    uses = precision in ("int8", "int8-weights") and len(pictures.calibration)
    return f" calibrated on {len(pictures.calibration)} pictures" if uses else ""


def gather(
    folder: Path | None,
    draw: Draw,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    say: Callable[[str], None],
) -> GatePictures:
    """Read the pictures in `folder`, or draw pictures if `folder` is None.

    `say` is called with lines about what in `folder` is not used. Raises the ConfigError of
    `read_pictures` or of `draw`.
    """
    if folder is None:
        return draw(preprocessing, classes)
    pictures = read_pictures(folder, preprocessing, classes)
    for line in pictures.left_out.lines():
        say(line)
    return pictures


def read_pictures(
    folder: Path, preprocessing: Preprocessing, classes: Sequence[str]
) -> GatePictures:
    """Read the pictures below `folder` and split them between the gate and the calibration.

    Every file is hashed, copies count once, and the pictures with the lowest hashes are taken:
    256 at most, or 640 with labels. A third of them, 128 at most, become the calibration. With
    fewer than 96 pictures, all are used for both.

    A picture's label is the index of the innermost folder above it whose name is in `classes`,
    compared in Unicode form NFC; labels are used only if every picture has one. Files that cannot
    be read or decoded are left out. Raises ConfigError if the folder cannot be read or has fewer
    than 64 different pictures.
    """
    files = _find(folder, classes)
    found: dict[str, tuple[Path, int | None]] = {}
    skipped: list[Skipped] = []
    for path, label in files.pictures:
        try:
            found.setdefault(picture_hash(path.read_bytes()), (path, label))
        except OSError as error:
            skipped.append(Skipped(path, unreadable(error)))
    chosen = [found[key] for key in sorted(found)]
    labels = [label for _, label in chosen if label is not None]
    known_all = labels if len(labels) == len(chosen) else None
    pixels, taken, broken = _prepare([path for path, _ in chosen], known_all, preprocessing)
    skipped += [Skipped(chosen[place][0], reason) for place, reason in broken.items()]
    left_out = files.left_out + LeftOut(skipped=tuple(skipped))
    if len(pixels) < LEAST:
        held = f"{len(pixels)} different readable picture{'s' * (len(pixels) != 1)}"
        raise ConfigError(_too_few(folder, held, left_out))
    # Below 96 pictures, two thirds would be fewer than 64 for the gate, so all are used for both.
    apart = len(pixels) * 2 // 3 >= LEAST
    count = min(_CALIBRATION, len(pixels) // 3) if apart else 0
    gate = len(pixels) - count
    return GatePictures(
        pixels=pixels[:gate],
        labels=None if taken is None else taken[:gate],
        calibration=pixels[gate:] if apart else pixels,
        left_out=left_out,
        source="folder",
    )


def from_bytes(
    images: Sequence[bytes], preprocessing: Preprocessing, labels: Sequence[int] | None = None
) -> GatePictures:
    """Prepare drawn pictures, given as the bytes of picture files, for the gate only.

    They are not used to calibrate int8, because its ranges must come from pictures like the
    fleet's own. `labels` are class indices, one for each image. Images that cannot be decoded are
    not used. Raises ConfigError if fewer than 64 can be decoded.
    """
    pixels, taken, _ = _prepare(images, labels, preprocessing)
    if len(pixels) < LEAST:
        raise ConfigError(
            f"only {len(pixels)} drawn pictures could be decoded; the parity gate needs {LEAST}"
        )
    return GatePictures(pixels, taken, pixels[:0], LeftOut(), "drawn")


def _prepare(
    images: Sequence[Path | bytes], labels: Sequence[int] | None, preprocessing: Preprocessing
) -> tuple[F32, I64 | None, dict[int, str]]:
    """Decode the first pictures, as many as gate and calibration need together.

    Returns pixels float32 (N, 3, S, S), their labels int64 (N,) or None, and the reasons for the
    images that could not be decoded, by their index in `images`.
    """
    most = _CALIBRATION + (_GATE if labels is None else _GATE_LABELLED)
    pixels: list[F32] = []
    places: list[int] = []
    broken: dict[int, str] = {}
    for place, image in enumerate(images):
        try:
            data = image if isinstance(image, bytes) else image.read_bytes()
            pixels.append(decode(data, preprocessing))  # (3, S, S)
            places.append(place)
        except DataError as error:
            broken[place] = str(error)
        except OSError as error:
            broken[place] = unreadable(error)
        if len(pixels) == most:
            break
    side = preprocessing.image_size
    stacked = np.stack(pixels) if pixels else np.zeros((0, 3, side, side), np.float32)
    taken = None if labels is None else np.array([labels[place] for place in places], np.int64)
    return stacked, taken, broken


def _too_few(folder: Path, held: str, left_out: LeftOut) -> str:
    return (
        f"{folder} has {held}{left_out.reasons()}, but the parity gate of an export needs "
        f"{LEAST} different readable pictures; name a folder with more"
    )


def _find(folder: Path, classes: Sequence[str]) -> Found:
    try:
        if not folder.is_dir():
            problem = "is not a folder" if folder.exists() else "does not exist"
            raise ConfigError(f"{folder} {problem}; name a folder with {LEAST} pictures or more")
    except OSError as error:
        raise ConfigError(f"{folder} {unreadable(error)}") from error
    return find_pictures(folder, labels_of(classes))
