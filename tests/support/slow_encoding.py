"""The work of an encoder process that decodes slowly; `slow_agent.py` sets the two variables."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedclip_edge.agent import encoding
from fedclip_edge.vision import embedding, pictures
from fedclip_edge.vision.datasets import Picture
from fedclip_edge.vision.embedding import Progress

_decode = pictures.decode
_first: set[str] = set()  # hashes of the first batch; threads decode several batches at a time


class Encoding(encoding.Encoding):
    """The usual one, which notes the pictures that do not wait."""

    def encode(
        self, pictures: Sequence[Picture], progress: Progress | None = None
    ) -> encoding.Encoded:
        if not _first:
            _first.update(picture.hash for picture in pictures[:8])
        return super().encode(pictures, progress)


def _slowly(data: bytes, *given: Any, **more: Any) -> Any:
    time.sleep(float(os.environ["SLOW_S"]))
    go = os.environ["SLOW_GO"]
    is_held = go != "-" and pictures.picture_hash(data) not in _first
    while is_held and not Path(go).exists():
        time.sleep(0.05)
    return _decode(data, *given, **more)


vars(embedding)["decode"] = _slowly
