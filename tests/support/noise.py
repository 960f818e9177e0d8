"""Chunks that are repeated or altered on a link, reproducibly."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from mqtt_frames import Publish


@dataclass(frozen=True)
class Noise:
    """A change to every `every`-th chunk in each direction; `seed` chooses the first one."""

    how: Literal["duplicate", "corrupt"]
    every: int
    seed: int = 0


class Dice:
    """Decides on the chunks of one direction."""

    def __init__(self, noise: Noise, direction: str) -> None:
        self._noise = noise
        self._random = random.Random(f"{noise.seed}/{direction}")
        self._spared = self._random.randrange(noise.every)  # chunks until the next change

    def fate(self, chunk: Publish) -> tuple[bytes, ...]:
        """The packets that are passed on in place of `chunk`."""
        if self._spared:
            self._spared -= 1
            return (chunk.packet,)
        self._spared = self._noise.every - 1
        if self._noise.how == "duplicate":
            return (chunk.packet, chunk.again())
        return (chunk.flipped(self._random.randrange(8 * len(chunk.payload))),)
