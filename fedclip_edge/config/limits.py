"""Limits of what the agent takes from its box: [limits] in agent.toml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedclip_edge.config.reading import require


@dataclass(frozen=True)
class Limits:
    """Limits of one device. None: no limit."""

    max_threads: int | None = None  # processors that the encoder and the trainer run on
    nice: int = 5  # niceness of encoder and trainer; at 19 all other programs come first
    max_memory_mb: int | None = None  # memory of the encoder, and of the trainer
    max_cache_mb: int | None = None  # features on disk; the oldest unused ones are deleted first
    max_temperature_c: float | None = None  # above it the device pauses
    on_battery: Literal["run", "pause"] = "run"  # what the device does without mains power

    def __post_init__(self) -> None:
        for name, least in (("max_threads", 1), ("max_memory_mb", 100), ("max_cache_mb", 1)):
            value = getattr(self, name)
            require(
                value is None or value >= least, f"{name}: expected {least} or more, got {value}"
            )
        require(0 <= self.nice <= 19, f"nice: expected 0 to 19, got {self.nice}")
        require(
            self.max_temperature_c is None or 30 <= self.max_temperature_c <= 150,
            f"max_temperature_c: expected 30 to 150, got {self.max_temperature_c}",
        )
