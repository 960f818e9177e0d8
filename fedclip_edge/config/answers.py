"""Settings of a device's answers about its new pictures: [answers] in agent.toml."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.config.reading import require

_SMALLEST_FILE = 10_000  # bytes; several answers with many classes fit into it
_LONGEST_TOPIC = (
    200  # characters, so that a topic and the names after it fit into any broker's limit
)


@dataclass(frozen=True)
class AnswersBroker(BrokerAddress):
    """The broker that gets the answers, and the topics there. It need not be the fleet's."""

    topic: str = "fedclip-edge"  # the topics begin with this, then the device's id
    keep: int = 1000  # answers that wait while the broker is away; the oldest are dropped
    home_assistant: bool = False  # announce the device to Home Assistant (MQTT discovery)
    discovery_topic: str = "homeassistant"  # Home Assistant's discovery prefix

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.keep <= 100_000, f"keep: expected 1 to 100000, got {self.keep}")
        for name in ("topic", "discovery_topic"):
            topic = getattr(self, name)
            levels = topic.split("/")
            require(
                topic.isprintable()
                and all(levels)
                and not set(topic) & set("+#")
                and not topic.startswith("$")
                and len(topic) <= _LONGEST_TOPIC,
                f"{name}: expected names with / between them, without + and #, got {topic[:80]!r}",
            )

    @property
    def access_advice(self) -> str:
        """The next step if the access list of the broker denies a topic."""
        return "add the lines that `fedclip-edge agent --access-list` prints to the access list"


@dataclass(frozen=True)
class AnswersConfig:
    """The model that answers, and where the answers go."""

    # "own": the device's personal model if the run made one, otherwise the fleet's
    model: Literal["own", "fleet"] = "own"
    top: int = 3  # likeliest classes in each answer
    file: Path | None = None  # JSON lines; None: answers.jsonl in state_dir
    file_bytes: int = 10_000_000  # the file is renamed before it is larger than this
    old_files: int = 4  # renamed files that are kept
    # An event is over after so many seconds without a picture of it.
    event_s: float = 10.0
    event_pictures: int = 3  # an event with fewer pictures has no common answer
    event_share: float = 0.6  # share of an event's pictures that must agree
    broker: AnswersBroker | None = None  # MQTT broker for the answers; None: they stay in the file

    def __post_init__(self) -> None:
        require(self.top >= 1, f"top: expected 1 or more, got {self.top}")
        require(
            self.file_bytes >= _SMALLEST_FILE,
            f"file_bytes: expected {_SMALLEST_FILE} or more, got {self.file_bytes}",
        )
        require(0 <= self.old_files <= 1000, f"old_files: expected 0 to 1000, got {self.old_files}")
        require(0 < self.event_s < math.inf, f"event_s: expected above 0, got {self.event_s}")
        require(
            self.event_pictures >= 1,
            f"event_pictures: expected 1 or more, got {self.event_pictures}",
        )
        require(
            0 < self.event_share <= 1,
            f"event_share: expected above 0 and at most 1, got {self.event_share}",
        )
