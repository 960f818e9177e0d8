"""The time at which a picture was taken."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

_EXIF, _ORIGINAL, _CHANGED = 0x8769, 0x9003, 0x0132  # tags


def taken_at(path: Path) -> float:
    """Return the Unix time in seconds: from EXIF, else the time of the file's last change.

    EXIF has the clock of the camera, without a time zone; it is taken for this machine's zone.
    Raises OSError if the file cannot be read.
    """
    from PIL import Image

    changed = path.stat().st_mtime
    try:
        with Image.open(path) as picture:
            exif = picture.getexif()
            text = exif.get_ifd(_EXIF).get(_ORIGINAL) or exif.get(_CHANGED)
            return datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S").timestamp()  # noqa: DTZ007
    except Exception:  # noqa: BLE001 - damaged files fail anywhere in Pillow; most have no time
        return changed
