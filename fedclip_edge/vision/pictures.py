"""Decoding of picture files to pixels, exactly as open_clip and torchvision prepare them.

Pillow is imported when the first picture is decoded, so that reading a bundle does not need it.

Laws:

- A file and a `Preprocessing` give the same pixels as `open_clip.image_transform` gives for an RGB
  picture. Only with `fast` do they differ a little.
- A file that cannot be decoded completely raises an error; it never gives a half-grey picture.
- The pictures that are decoded at the same time have at most MAX_PIXELS together, for any number of
  threads.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedclip_edge.errors import DataError
from fedclip_edge.records import F32, U8
from fedclip_edge.vision.picture_bytes import read_picture
from fedclip_edge.vision.pixel_budget import PixelBudget

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow's own limit: a quarter of a gigabyte when decoded. A small file can claim any size.
MAX_PIXELS = 89_478_485
# With `fast`, a JPEG keeps at least this multiple of the size that it is scaled to.
_SHARP = 2


@dataclass(frozen=True)
class Preprocessing:
    """Scaling, cropping and normalisation before an encoder; part of the encoder's identity.

    `resize` "shortest" scales the shorter side to `resize_px` and crops the centre to `image_size`
    (S); "squash" scales both sides to `image_size` and needs `resize_px` equal to it. `mean` and
    `std` have three numbers (red, green, blue), for pixels scaled to 0..1.

    Raises ValueError if a setting is outside its range.
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
        """Return a JSON object; `decoding.decode_table(Preprocessing, ...)` reads it back."""
        # Always floats, because 0 and 0.0 must give the same text, and so the same encoder id.
        return {
            **asdict(self),
            "mean": [float(value) for value in self.mean],
            "std": [float(value) for value in self.std],
        }


def picture_hash(data: bytes) -> str:
    """SHA-256 of a picture file's bytes, in 64 hex digits; it identifies the picture everywhere."""
    return hashlib.sha256(data).hexdigest()


def load(source: Path | bytes, preprocessing: Preprocessing) -> F32:
    """Read a picture for the encoder: float32 (3, S, S), red, green, blue, normalised.

    The EXIF orientation is not applied and transparency is dropped, as in open_clip and
    torchvision, because an encoder was trained and measured on the pixels as stored.

    Raises DataError, with the file and the reason, if the file is missing, not a picture,
    incomplete or damaged, has 16- or 32-bit values, or has more than MAX_PIXELS as stored or as
    scaled.
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        return decode(source if isinstance(source, bytes) else read_picture(source), preprocessing)
    except DataError as error:
        raise DataError(f"{name} cannot be used: {error}") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from error


def decode(data: bytes, preprocessing: Preprocessing, *, fast: bool = False) -> F32:
    """Decode a picture file's bytes as `load` does: float32 (3, S, S), normalised.

    With `fast`, a large JPEG is decoded at a half, a quarter or an eighth of its resolution, and
    only the part that the crop keeps is scaled. Several threads may decode at the same time.

    Raises DataError with only the reason ("it is incomplete or damaged").
    """
    if not data:
        raise DataError("the file is empty")
    try:
        return normalise(_pixels(data, preprocessing, fast), preprocessing)
    except DataError:
        raise
    except Exception as error:  # a broken file can fail anywhere inside Pillow's decoders
        raise DataError(f"it is incomplete or damaged ({error})") from error


def normalise(pixels: U8, preprocessing: Preprocessing) -> F32:
    """Normalise pixels uint8 (..., S, S, 3), red, green, blue, to float32 (..., 3, S, S).

    exporting/fusion.py writes the same arithmetic as a graph, step for step.
    """
    *some, height, width, colours = pixels.shape
    normal = np.empty((*some, colours, height, width), np.float32)
    # A colour at a time, because numpy is slow over a last axis of three numbers.
    for colour in range(colours):
        plane = normal[..., colour, :, :]  # (..., S, S)
        np.divide(pixels[..., colour], np.float32(255), out=plane, dtype=np.float32)
        plane -= np.float32(preprocessing.mean[colour])
        plane /= np.float32(preprocessing.std[colour])
    return normal


def _pixels(data: bytes, preprocessing: Preprocessing, fast: bool) -> U8:
    """Decode, scale and crop: uint8 (S, S, 3). Of an animation, take the first frame."""
    with opened(data) as picture:
        scaled = _resized(picture.size, preprocessing)
        _check_size(scaled, "scaled for the encoder it would have")
        if fast:  # only JPEG has lower resolutions; draft() leaves other formats as they are
            picture.draft(None, (_SHARP * scaled[0], _SHARP * scaled[1]))
        with _DECODING.of(picture.width * picture.height):
            fit = _fit_part if fast else _fit
            return np.asarray(fit(as_rgb(picture), scaled, preprocessing))


@contextmanager
def opened(data: bytes) -> Iterator[Image]:
    """Open a picture file's bytes; no pixel is decoded yet.

    Take its pixels from a PixelBudget before they are decoded. Raises DataError with only the
    reason if it is no picture, or has too many pixels or 16- or 32-bit values. Other errors of
    Pillow, also those in the block, pass through.
    """
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(data)) as picture:
            _check_size(picture.size, "it has")
            if picture.mode[0] in "IF":  # Pillow would clip to 8 bits: mostly white
                raise DataError("it has 16- or 32-bit grey values; save it with 8 bits per channel")
            yield picture
    except pillow.UnidentifiedImageError:
        if data[4:8] == b"ftyp":  # the container of both
            raise DataError(
                "it is a HEIC or AVIF picture, which the installed Pillow cannot read; install "
                "Pillow 11.3 or later for AVIF, pillow-heif for HEIC"
            ) from None
        raise DataError("it is not a picture in a known format") from None
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        raise DataError(f"it has more than {MAX_PIXELS} pixels") from None


def as_rgb(opened: Image) -> Image:
    """Decode all pixels of an open file to RGB; transparency is dropped."""
    if opened.mode == "RGB":
        opened.load()  # convert() would copy them, which takes as long as decoding
        return opened
    if opened.mode == "P":  # avoids a warning about transparency
        opened = opened.convert("RGBA")
    return opened.convert("RGB")


def _fit(picture: Image, scaled: tuple[int, int], preprocessing: Preprocessing) -> Image:
    """Scale and crop, with the rounding of torchvision's `Resize` and `CenterCrop`."""
    return picture.resize(scaled, _filter(preprocessing)).crop(_crop(scaled, preprocessing))


def _fit_part(picture: Image, scaled: tuple[int, int], preprocessing: Preprocessing) -> Image:
    """Scale only the part that the crop keeps: at most one grey level away from `_fit`.

    Pillow keeps the part's edges in float32, so its weights differ in their last bits.
    """
    across, down = picture.width / scaled[0], picture.height / scaled[1]
    left, top, right, bottom = _crop(scaled, preprocessing)
    part = (left * across, top * down, right * across, bottom * down)
    side = preprocessing.image_size
    return picture.resize((side, side), _filter(preprocessing), box=part)


def _filter(preprocessing: Preprocessing) -> Any:
    return _pillow().Resampling[preprocessing.interpolation.upper()]


def _crop(scaled: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the crop, in pixels of the scaled picture."""
    size = preprocessing.image_size
    left, top = round((scaled[0] - size) / 2.0), round((scaled[1] - size) / 2.0)
    return left, top, left + size, top + size


def _resized(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Return width and height after scaling, before the crop, in pixels."""
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
        raise DataError(f"{what} {width} x {height} pixels, more than the limit of {MAX_PIXELS}")


_DECODING = PixelBudget(MAX_PIXELS)


@cache
def _pillow() -> ModuleType:
    from PIL import Image

    with suppress(ModuleNotFoundError):  # without it, HEIC cannot be read
        import pillow_heif

        pillow_heif.register_heif_opener()
    # Above its limit Pillow only warns and continues; here the picture is refused.
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    return Image
