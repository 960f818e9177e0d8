"""Small copies of pictures: upright, of a limited size, and without metadata."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from fedclip_edge.errors import DataError
from fedclip_edge.vision import pictures
from fedclip_edge.vision import thumbnail as making
from fedclip_edge.vision.pixel_budget import PixelBudget
from fedclip_edge.vision.thumbnail import thumbnail

_ORIENTATION, _GPS = 0x0112, 0x8825


def encoded(picture: Image.Image, kind: str = "JPEG", **settings: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def shown(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def scene() -> Image.Image:
    """A picture without any symmetry: red left above, green right above."""
    pixels = np.zeros((300, 400, 3), np.uint8)
    pixels[:100, :200, 0] = pixels[:100, 200:, 1] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_upright_whatever_the_camera_stored(orientation: int) -> None:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    stored = encoded(scene(), exif=exif, quality=95)
    expected = ImageOps.exif_transpose(shown(stored))
    assert expected is not None
    expected.thumbnail((128, 128))
    made = shown(thumbnail(stored, 128))
    assert made.size == expected.size
    difference = np.asarray(made, np.int16) - np.asarray(expected, np.int16)
    assert np.abs(difference).mean() < 8


@pytest.mark.parametrize(("width", "height", "size"), [
    (2000, 1000, (256, 128)), (300, 3000, (26, 256)), (100, 60, (100, 60)),
])  # fmt: skip
def test_its_longer_side_has_the_size_that_was_asked_for(
    width: int, height: int, size: tuple[int, int]
) -> None:
    assert shown(thumbnail(encoded(Image.new("RGB", (width, height))), 256)).size == size


def test_it_has_no_metadata() -> None:
    exif = Image.Exif()
    exif[0x010F] = "SECRET-maker"
    exif[_GPS] = {1: "N", 2: (52.0, 31.0, 12.0)}
    jpeg = encoded(
        scene(), exif=exif, comment=b"SECRET-comment", icc_profile=b"SECRET-profile" * 20
    )
    text = PngInfo()
    text.add_text("Author", "SECRET-author")
    png = encoded(scene(), "PNG", pnginfo=text, exif=exif)
    for stored in (jpeg, png):
        assert b"SECRET" in stored
        made = thumbnail(stored, 256)
        assert b"SECRET" not in made
        opened = shown(made)
        assert (opened.format, dict(opened.getexif()), opened.info.get("comment")) == (
            "JPEG", {}, None,
        )  # fmt: skip


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_picture_becomes_one(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert shown(thumbnail(encoded(scene().convert(mode), kind), 64)).size == (64, 48)


def test_what_is_no_picture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded(scene())
    for wrong in (b"", b"no picture", whole[: len(whole) // 2]):
        with pytest.raises(DataError):
            thumbnail(wrong, 256)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 400 * 300 - 1)
    with pytest.raises(DataError, match="more than the limit"):
        thumbnail(whole, 256)


class Counting(PixelBudget):
    """A budget that notes what is taken."""

    def __init__(self) -> None:
        super().__init__(10**9)
        self.taken: list[int] = []

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        self.taken.append(pixels)
        with super().of(pixels):
            yield


def test_its_pixels_are_taken_from_a_budget_and_a_large_jpeg_has_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budget = Counting()
    monkeypatch.setattr(making, "_PIXELS", budget)
    large = Image.new("RGB", (1600, 1200))
    thumbnail(encoded(large, "PNG"), 64)
    thumbnail(encoded(large), 64)
    assert budget.taken == [1600 * 1200, 200 * 150]
