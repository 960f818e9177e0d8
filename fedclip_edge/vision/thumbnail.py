"""Small copies of pictures, to show to a person."""

from __future__ import annotations

import io

from fedclip_edge.errors import DataError
from fedclip_edge.vision.pictures import as_rgb, opened
from fedclip_edge.vision.pixel_budget import PixelBudget

# At the same time, in 100 MB: this process runs beside an encoder. A larger picture waits until it
# is alone.
_PIXELS = PixelBudget(25_000_000)
_QUALITY = 82  # of JPEG: no visible faults in a small picture
_ORIENTATION = 0x0112  # EXIF tag
# By the value of the tag, the names of Pillow's operations that turn the picture upright.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def thumbnail(data: bytes, side_px: int) -> bytes:
    """Return a picture as a JPEG file with sides of at most `side_px`, upright.

    It has pixels and nothing else: no place, no time, no name, no comment of the picture. Unlike
    for the encoder, the EXIF orientation is applied. Raises DataError with only the reason if the
    picture cannot be decoded.
    """
    try:
        return _made(data, side_px)
    except DataError:
        raise
    except Exception as error:  # a broken file can fail anywhere inside Pillow's decoders
        raise DataError(f"it is incomplete or damaged ({error})") from error


def _made(data: bytes, side_px: int) -> bytes:
    from PIL import Image

    with opened(data) as picture:
        picture.draft(None, (2 * side_px, 2 * side_px))  # only for JPEG: a lower resolution
        with _PIXELS.of(picture.width * picture.height):
            small = as_rgb(picture)
            turn = _UPRIGHT.get(picture.getexif().get(_ORIENTATION, 1))  # this decodes a PNG
            small.thumbnail((side_px, side_px), reducing_gap=2.0)
        if turn is not None:
            small = small.transpose(Image.Transpose[turn])
        # Pillow may write what it has read beside the pixels, such as a comment.
        clean = Image.new("RGB", small.size)
        clean.paste(small)
    file = io.BytesIO()
    clean.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
