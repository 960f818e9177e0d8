"""A payload that arrives chunk by chunk in a file on disk, so that a restarted device goes on.

Next to the file NAME.part lies NAME.arrived, with one byte for each chunk: 1 once it is written.

Law: after a loss of power, a chunk may count as arrived and be missing. So the file is used only if
`check` finds the announced SHA-256; otherwise all of it is fetched again.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fedclip_edge.errors import PeerError
from fedclip_edge.protocol.message_parts import Blob

_BLOCK_BYTES = 1 << 20


class PartFile:
    """The parts (chunks.Parts) of one blob, in a folder that exists.

    Raises OSError if the files cannot be written.
    """

    def __init__(self, folder: Path, blob: Blob) -> None:
        self.blob = blob
        # The size of the chunks may change with the broker.
        name = f"{blob.sha256}-{blob.chunk_bytes}"
        self.path = folder / f"{name}.part"
        self._mark = folder / f"{name}.arrived"
        self._data, self._marks = _opened(self.path), _opened(self._mark)
        os.ftruncate(self._data, blob.size_bytes)
        os.ftruncate(self._marks, blob.chunks)
        self._arrived = bytearray(os.pread(self._marks, blob.chunks, 0))
        self._count = self._arrived.count(1)

    def __contains__(self, index: object, /) -> bool:
        return isinstance(index, int) and self._arrived[index] == 1

    def __setitem__(self, index: int, part: bytes, /) -> None:
        os.pwrite(self._data, part, index * self.blob.chunk_bytes)
        os.pwrite(self._marks, b"\1", index)
        self._count += self._arrived[index] != 1
        self._arrived[index] = 1

    def __len__(self) -> int:
        return self._count

    def check(self) -> None:
        """Raise PeerError unless the whole file has the announced SHA-256; it is then deleted."""
        digest, offset = hashlib.sha256(), 0
        while block := os.pread(self._data, _BLOCK_BYTES, offset):
            digest.update(block)
            offset += len(block)
        if digest.hexdigest() != self.blob.sha256:
            self.delete()
            raise PeerError(f"the {self.blob.kind} file arrived with another SHA-256")
        os.fsync(self._data)

    def close(self) -> None:
        """Close the files; they stay on disk."""
        os.close(self._data)
        os.close(self._marks)

    def delete(self) -> None:
        """Close and delete the files."""
        self.close()
        self.path.unlink(missing_ok=True)
        self._mark.unlink(missing_ok=True)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
