"""A limit of the pixels that all threads together hold at one time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PixelBudget:
    """A number of pixels, of which each thread takes some and gives them back."""

    def __init__(self, pixels: int) -> None:
        self._free = self._most = pixels
        self._changed = threading.Condition()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Take `pixels` for the block, and wait until so many are free.

        A picture with more than the limit waits until it is alone.
        """
        pixels = min(pixels, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()
