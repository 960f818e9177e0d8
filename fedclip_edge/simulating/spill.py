"""A temporary file with one object for each device, which keeps them out of memory.

The file has no name, so it disappears when its process ends, also when it is killed. It is in the
folder that the environment variable TMPDIR names, or in /tmp. A process needs one open file,
however many devices it has.

Law: the object that is read is the one that was written, byte for byte.
"""

from __future__ import annotations

import pickle
import tempfile
import weakref
from dataclasses import dataclass
from io import FileIO
from typing import TypeVar, cast

from fedclip_edge.errors import DiskError

_Some = TypeVar("_Some")
_PAGE = 4096


@dataclass(frozen=True)
class _Place:
    start: int
    room: int  # bytes from `start` that belong to the object
    sizes: tuple[int, ...]  # of its pickle and of each of its arrays, in bytes


class SpillFile:
    """Objects by name. The methods raise DiskError if the file cannot be made, written or read."""

    def __init__(self) -> None:
        self._file: FileIO | None = None
        self._places: dict[str, _Place] = {}
        self._end = 0

    def put(self, name: str, value: object) -> None:
        """Write an object, in the place of the earlier one with this name."""
        arrays: list[pickle.PickleBuffer] = []
        head = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
        parts = [memoryview(head), *(array.raw() for array in arrays)]
        sizes = tuple(len(part) for part in parts)
        place = self._places.get(name)
        if place is None or place.room < sum(sizes):
            place = _Place(self._end, -(-sum(sizes) // _PAGE) * _PAGE, ())
            self._end += place.room
        self._places[name] = _Place(place.start, place.room, sizes)
        try:
            file = self._opened()
            file.seek(place.start)
            for part in parts:
                while part:
                    part = part[file.write(part) :]  # noqa: PLW2901
        except OSError as error:
            raise _failed("written", error) from error

    def get(self, name: str, default: _Some) -> _Some:
        """Read the object with this name; returns `default` if there is none."""
        place = self._places.get(name)
        if place is None:
            return default
        parts = [bytearray(size) for size in place.sizes]  # arrays stay writable
        try:
            file = self._opened()
            file.seek(place.start)
            for part in parts:
                missing = memoryview(part)
                while missing:
                    count = file.readinto(missing)
                    if not count:
                        raise OSError("the file is too short")
                    missing = missing[count:]
        except OSError as error:
            raise _failed("read", error) from error
        return cast("_Some", pickle.loads(parts[0], buffers=parts[1:]))  # noqa: S301 - our own

    def _opened(self) -> FileIO:
        if self._file is None:
            made = tempfile.TemporaryFile(prefix="fedclip-edge-", buffering=0)  # noqa: SIM115
            self._file = made
            weakref.finalize(self, made.close)
        return self._file


def _failed(what: str, error: OSError) -> DiskError:
    return DiskError(
        f"what the devices keep between rounds cannot be {what} in a temporary file in "
        f"{tempfile.gettempdir()}: {error.strerror or error}; free disk space there, or name "
        "another folder in the environment variable TMPDIR"
    )
