"""The chunks of one blob that devices have asked for, each sent once for all of them.

Law: a chunk that is asked for again before it is sent is sent once. So the bytes on the way do not
grow with the number of devices that ask.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator

from fedclip_edge.protocol.chunks import Ranges, split
from fedclip_edge.protocol.messages import Blob


class WantedChunks(Iterator[bytes]):
    """An iterator over the wanted chunks, lowest index first; it may go on after it has ended.

    `add` and the iteration may run on different threads.
    """

    def __init__(self, payload: bytes, blob: Blob) -> None:
        self.blob = blob
        self._payload = payload
        self._lock = threading.Lock()
        self._wanted: set[int] = set()
        self._order: list[int] = []  # a heap of the same indices

    def add(self, ranges: Ranges) -> None:
        """Add the chunks in these ranges; indices beyond the last chunk are left out."""
        with self._lock:
            for first, last in ranges:
                for index in range(first, min(last, self.blob.chunks - 1) + 1):
                    if index not in self._wanted:
                        self._wanted.add(index)
                        heapq.heappush(self._order, index)

    def __next__(self) -> bytes:
        with self._lock:
            if not self._order:
                raise StopIteration
            index = heapq.heappop(self._order)
            self._wanted.remove(index)
        return next(split(self._payload, self.blob, ((index, index),)))
