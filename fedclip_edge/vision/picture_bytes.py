"""The bytes of a picture file, and of the files beside it.

Law: opening and reading end soon. A pipe, which may never have content, and a file that is too
large to be a picture are refused with an OSError that says so.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

NO_FILE = "it is a pipe, a socket or a device, not a file"  # reading it may never end
# The largest picture that is accepted has 89 million pixels, and 356 MB if it is not compressed.
MAX_FILE_BYTES = 512 * 1024 * 1024
_AT_ONCE = 1024 * 1024


def open_file(path: Path) -> BinaryIO:
    """Open a file to read it; raises OSError, also for anything that is not a file."""
    # Without O_NONBLOCK, opening a pipe waits until another program writes to it.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, NO_FILE, str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def open_picture(path: Path) -> BinaryIO:
    """Open a picture file; raises OSError as `open_file` does, and for more than MAX_FILE_BYTES."""
    file = open_file(path)
    size = os.fstat(file.fileno()).st_size
    if size > MAX_FILE_BYTES:
        file.close()
        reason = f"it has {size >> 20} MiB, and a picture has {MAX_FILE_BYTES >> 20} at most"
        raise OSError(errno.EFBIG, reason, str(path))
    return file


def read_picture(path: Path) -> bytes:
    """The bytes of a picture file; raises the errors of `open_picture`."""
    with open_picture(path) as file:
        return file.read(MAX_FILE_BYTES)  # it may grow meanwhile


def parts_of(path: Path) -> Iterator[bytes]:
    """Yield the same bytes in parts, to keep little in memory; raises as `open_picture` does."""
    left = MAX_FILE_BYTES
    with open_picture(path) as file:
        while left > 0 and (data := file.read(min(left, _AT_ONCE))):
            yield data
            left -= len(data)
