"""Chunks that are repeated or altered on a link, the same ones each time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from mqtt_frames import Publish


@dataclass(frozen=True)
class Noise:
    """What happens to every `every`-th chunk each way, from one that `seed` draws."""

    how: Literal["duplicate", "corrupt"]
    every: int
    seed: int = 0


class Dice:
    """What becomes of the chunks of one direction."""

    def __init__(self, noise: Noise, direction: str) -> None:
        self._noise = noise
        self._random = random.Random(f"{noise.seed}/{direction}")
        self._spared = self._random.randrange(noise.every)  # until the next one

    def fate(self, chunk: Publish) -> tuple[bytes, ...]:
        """The packets that are passed on instead."""
        if self._spared:
            self._spared -= 1
            return (chunk.packet,)
        self._spared = self._noise.every - 1
        if self._noise.how == "duplicate":
            return (chunk.packet, chunk.again())
        return (chunk.flipped(self._random.randrange(8 * len(chunk.payload))),)
