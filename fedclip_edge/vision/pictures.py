"""Picture files to pixels, exactly as open_clip and torchvision prepare them.

Laws: the same file and the same `Preprocessing` give the same pixels as
`open_clip.image_transform` gives on an RGB picture; a file that cannot be decoded completely
is an error, never a picture with a grey half. Pillow is imported when the first picture is
decoded, so that whoever only reads a bundle needs no Pillow.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from fedclip_edge.errors import DataError
from fedclip_edge.records import F32, U8

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow's own limit: a quarter gigabyte once decoded. A small file can claim any size.
MAX_PIXELS = 89_478_485


@dataclass(frozen=True)
class Preprocessing:
    """How an encoder wants its pictures; part of the encoder's identity.

    "shortest" scales the shorter side to `resize_px` and crops the centre to `image_size`;
    "squash" scales both sides to `image_size` and needs `resize_px` equal to it. `mean` and
    `std` are per channel (red, green, blue), on pixels scaled to 0..1.
    """

    image_size: int
    resize: Literal["shortest", "squash"]
    resize_px: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= 4096:
            raise ValueError(f"image_size: expected 1 to 4096 pixels, got {self.image_size}")
        if self.resize not in ("shortest", "squash"):
            raise ValueError(f"resize: expected shortest or squash, got {self.resize!r}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f"interpolation: expected bilinear or bicubic, got {self.interpolation!r}"
            )
        if self.resize == "squash" and self.resize_px != self.image_size:
            raise ValueError(
                f"resize_px: expected image_size ({self.image_size}) with resize = squash, "
                f"got {self.resize_px}"
            )
        if not self.image_size <= self.resize_px <= 8192:
            raise ValueError(
                f"resize_px: expected image_size ({self.image_size}) to 8192 pixels, "
                f"got {self.resize_px}"
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(math.isfinite(v) for v in values):
                raise ValueError(f"{name}: expected three numbers, got {list(values)}")
        if min(self.std) <= 0:
            raise ValueError(f"std: expected three numbers above 0, got {list(self.std)}")

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `decoding.decode_table(Preprocessing, ...)` reads it back."""
        # Floats always: 0 and 0.0 are one number, and must be one text in the encoder's identity.
        return {
            **asdict(self),
            "mean": [float(value) for value in self.mean],
            "std": [float(value) for value in self.std],
        }


def picture_hash(data: bytes) -> str:
    """SHA-256 of a picture file's bytes, in hex: what a picture is called everywhere."""
    return hashlib.sha256(data).hexdigest()


def load(source: Path | bytes, preprocessing: Preprocessing) -> F32:
    """The picture as the encoder wants it: float32 [3, S, S], normalised.

    The orientation that a camera notes in EXIF is not applied, and transparency is dropped:
    open_clip and torchvision do neither, so the accuracy published for an encoder, and the
    features it was trained to give, are those of the pixels as stored.

    Raises DataError, naming the file and the reason, where it is missing, no picture, cut short
    or larger than MAX_PIXELS.
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        return decode(source if isinstance(source, bytes) else source.read_bytes(), preprocessing)
    except DataError as error:
        raise DataError(f"{name} cannot be used: {error}") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from error


def decode(data: bytes, preprocessing: Preprocessing) -> F32:
    """As `load`, for a file's bytes; the DataError gives the reason alone ("it is cut short")."""
    try:
        picture = _open(data, preprocessing)
    except DataError:
        raise
    except Exception as error:  # a broken file can fail anywhere inside Pillow's decoders
        raise DataError(f"it is cut short or damaged ({error})") from error
    return normalise(np.asarray(_fit(picture, preprocessing)), preprocessing)


def normalise(pixels: U8, preprocessing: Preprocessing) -> F32:
    """Pixels uint8 [..., S, S, 3], red, green, blue, as the encoder wants them: f32 [..., 3, S, S].

    exporting/classifier.py writes the same arithmetic as a graph, step for step.
    """
    scaled = pixels.astype(np.float32) / np.float32(255)  # (..., S, S, 3)
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    return np.ascontiguousarray(np.moveaxis((scaled - mean) / std, -1, -3))  # (..., 3, S, S)


def _open(data: bytes, preprocessing: Preprocessing) -> Image:
    """The whole picture in RGB; the first frame of an animation."""
    if not data:
        raise DataError("the file is empty")
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(data)) as opened:
            # Checked before a pixel is decoded.
            _check_size(opened.size, "it is")
            _check_size(_resized(opened.size, preprocessing), "scaled for the encoder it would be")
            if opened.mode[0] in "IF":  # Pillow would clip: most of 16 bits would be white
                raise DataError("it holds 16- or 32-bit grey values; save it with 8 bits a channel")
            if opened.mode == "P":  # straight to RGB, Pillow warns of transparency it would drop
                return cast("Image", opened.convert("RGBA").convert("RGB"))
            return cast("Image", opened.convert("RGB"))
    except pillow.UnidentifiedImageError:
        raise DataError("it is no picture in a known format") from None
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        raise DataError(f"it is larger than {MAX_PIXELS} pixels") from None


def _fit(picture: Image, preprocessing: Preprocessing) -> Image:
    """Scaled and cropped with the rounding of torchvision's `Resize` and `CenterCrop`."""
    kind = _pillow().Resampling[preprocessing.interpolation.upper()]
    width, height = _resized(picture.size, preprocessing)
    picture = picture.resize((width, height), kind)
    size = preprocessing.image_size
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return picture.crop((left, top, left + size, top + size))


def _resized(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Width and height after scaling, before the crop."""
    width, height = size
    short_px = preprocessing.resize_px
    if preprocessing.resize == "squash":
        return short_px, short_px
    if width <= height:
        return short_px, int(short_px * height / width)
    return int(short_px * width / height), short_px


def _check_size(size: tuple[int, int], what: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise DataError(f"{what} {width} x {height} pixels, more than {MAX_PIXELS}")


@cache
def _pillow() -> ModuleType:
    from PIL import Image

    # Above its limit Pillow only warns and goes on; here that is the end of the picture.
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    return Image
