"""A quick check for picture files that are still being written: their end is missing.

Nothing is decoded. Formats whose end cannot be told are taken for complete.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from fedclip_edge.vision.picture_bytes import open_picture

_TAIL = 64 * 1024  # some cameras write data of their own after the end of a JPEG


def is_complete(path: Path) -> bool:
    """Return whether the end of the picture seems to be there; raises OSError.

    False for an empty file, for a JPEG or PNG without its end marker, and for a WebP or BMP that is
    shorter than its header says.
    """
    with open_picture(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12)
        if head[:2] == b"\xff\xd8":
            return b"\xff\xd9" in _tail(file, size)
        if head[:4] == b"\x89PNG":
            return b"IEND" in _tail(file, size)
        if head[:4] == b"RIFF":
            return size >= 8 + int.from_bytes(head[4:8], "little")
        if head[:2] == b"BM":
            return size >= int.from_bytes(head[2:6], "little")
    return size > 0


def _tail(file: BinaryIO, size: int) -> bytes:
    file.seek(max(0, size - _TAIL))
    return file.read()
