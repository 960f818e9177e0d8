"""The chunks of one blob that devices have asked for, each sent once for all of them.

Law: a chunk that is asked for again before it is sent is sent once. So the bytes on the way do not
grow with the number of devices that ask.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterator

from fedclip_edge.protocol.chunks import Ranges, indices, pack_chunk
from fedclip_edge.protocol.message_parts import Blob


class WantedChunks(Iterator[bytes]):
    """An iterator over the wanted chunks; it may go on after it has ended.

    `read` gives the part of the payload with an index. Chunks come in ascending order, and after
    the last one from the first again. So a device that asks later gets the rest together with the
    others, and only then what they have already.

    `add` and the iteration may run on different threads.
    """

    def __init__(self, blob: Blob, read: Callable[[int], bytes]) -> None:
        self.blob = blob
        self._read = read
        self._lock = threading.Lock()
        self._wanted: set[int] = set()
        # Heaps of the same indices: those from the last one that was sent on, and those before it.
        self._ahead: list[int] = []
        self._behind: list[int] = []
        self._at = 0

    def add(self, ranges: Ranges) -> None:
        """Add the chunks in these ranges; indices beyond the last chunk are left out."""
        with self._lock:
            for index in indices(ranges, self.blob.chunks):
                if index not in self._wanted:
                    self._wanted.add(index)
                    heapq.heappush(self._ahead if index >= self._at else self._behind, index)

    def __next__(self) -> bytes:
        with self._lock:
            if not self._ahead:
                self._ahead, self._behind = self._behind, self._ahead
            if not self._ahead:
                raise StopIteration
            index = heapq.heappop(self._ahead)
            self._wanted.remove(index)
            self._at = index + 1
        return pack_chunk(self.blob, index, self._read(index))

    def __len__(self) -> int:
        return len(self._wanted)


def parts_of(payload: bytes, blob: Blob) -> Callable[[int], bytes]:
    """A function that gives the parts of a payload in memory."""
    size = blob.chunk_bytes
    return lambda index: payload[index * size : (index + 1) * size]
