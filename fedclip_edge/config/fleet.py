"""Settings of the coordinator and its fleet: fleet.toml.

The dataclasses raise ValueError for a value out of range; `load_fleet` raises ConfigError instead.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import time
from pathlib import Path
from typing import Literal

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.config.listen import check_listen, host_and_port
from fedclip_edge.config.page import PageSettings
from fedclip_edge.config.reading import load, require
from fedclip_edge.records import Plan, check_id

_SUMS_MAX_MB = 1_000_000  # 1 TB; a journal of this size is a mistake
_MAX_DELIVERY = 5_000_000  # what the coordinator sends in five steps a second, of 1 MiB each


@dataclass(frozen=True)
class RunRules:
    """Rules for opening, closing and repeating a round; durations in seconds."""

    # training devices that must be online before round 1; before later rounds, `quorum` times this
    # or times the devices that still count
    devices: int = 2
    quorum: float = 0.75  # share of a round's cohort that must contribute, above 0 and at most 1
    deadline_s: float = 600.0  # longest duration of one attempt at a round, in seconds
    grace_s: float = 30.0  # seconds that a round waits for a device that went offline
    cohort: int = 0  # devices drawn for each round; 0 takes all training devices that are online
    upload_slots: int = 8  # devices that may upload at the same time
    # "last": a device that is away counts with its last contribution, in a round of exact sums
    absent: Literal["skip", "last"] = "skip"

    def __post_init__(self) -> None:
        require(self.devices >= 1, f"devices: expected 1 or more, got {self.devices}")
        require(0 < self.quorum <= 1, f"quorum: expected above 0 and at most 1, got {self.quorum}")
        # Infinity is refused: JSON cannot represent it, and every round must have a deadline.
        require(
            0 < self.deadline_s < math.inf, f"deadline_s: expected above 0, got {self.deadline_s}"
        )
        require(0 <= self.grace_s < math.inf, f"grace_s: expected 0 or more, got {self.grace_s}")
        require(self.cohort >= 0, f"cohort: expected 0 or more, got {self.cohort}")
        require(
            self.upload_slots >= 1, f"upload_slots: expected 1 or more, got {self.upload_slots}"
        )
        require(
            self.absent == "skip" or self.cohort == 0,
            'cohort: absent = "last" counts every device, and a cohort leaves some out; leave out '
            "one of the two",
        )


@dataclass(frozen=True)
class Trainer:
    """An ordinary agent that `serve` also starts, for example on the operator's own pictures."""

    config: Path  # agent.toml of an agent that `serve` starts on the same machine


@dataclass(frozen=True)
class MetricsEndpoint:
    """The address at which `serve` answers Prometheus."""

    listen: str  # HOST:PORT, such as "127.0.0.1:9464"; whoever reaches it can read all metrics

    def __post_init__(self) -> None:
        check_listen(self.listen, "127.0.0.1:9464")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port. The host of an IPv6 address has no brackets."""
        return host_and_port(self.listen)


@dataclass(frozen=True)
class RunSchedule:
    """The times at which `serve` starts runs by itself; the first that is due starts the next run.

    A run that is due while another is under way starts when that one is over.
    """

    # "manual": also the first run waits for `fedclip-edge run start`, or for this schedule
    start: Literal["at once", "manual"] = "at once"
    every: str | None = None  # time from the start of one run to the next, such as "24h" or "30m"
    at: str | None = None  # local time of day at which a run starts, such as "02:30"
    new_pictures: int | None = (
        None  # labelled pictures that are new in the fleet since the last run
    )
    model: Literal["zero-shot", "last"] = "zero-shot"  # that such a run starts from

    def __post_init__(self) -> None:
        require(
            self.every is None or self.at is None,
            "every and at: expected one of them, not both",
        )
        if self.every is not None:
            _seconds(self.every)
        if self.at is not None:
            _time_of_day(self.at)
        require(
            self.new_pictures is None or self.new_pictures >= 1,
            f"new_pictures: expected 1 or more, got {self.new_pictures}",
        )

    @property
    def every_s(self) -> float | None:
        """`every` in seconds."""
        return None if self.every is None else _seconds(self.every)

    @property
    def at_time(self) -> time | None:
        """`at` as a time of day."""
        return None if self.at is None else _time_of_day(self.at)

    @property
    def starts_runs(self) -> bool:
        """True if a run may start by itself after the first one."""
        return bool(self.every or self.at or self.new_pictures)


@dataclass(frozen=True)
class FleetConfig:
    """Content of fleet.toml: the settings of a coordinator and its fleet."""

    fleet: str  # name of the fleet: 1 to 64 of a-z, 0-9 and '-'; the same on all its devices
    bundle: Path  # folder of the bundle: the encoder and classes that all devices must have
    journal: Path = Path("journal.sqlite")  # file from which a restarted coordinator resumes a run
    keep_models: int = 3  # newest models of each run that stay in the journal
    # report of each finished run, without pictures: reports/RUN.html and .json beside the journal
    reports: Literal["on", "off"] = "on"
    # MB of last contributions that stay, for `forget` and `absent`; 0 keeps none
    keep_sums_mb: int = 1000
    delivery_bytes_per_s: int = 2_000_000  # most bytes of bundles sent in a second
    broker: BrokerAddress = field(default_factory=BrokerAddress)  # MQTT broker and login
    registry: Path | None = None  # devices.json of the enrolled devices; without it any may join
    rules: RunRules = field(default_factory=RunRules)  # when rounds open, close and are repeated
    plan: Plan = field(default_factory=Plan)  # the training: method, rounds, codecs, strategy
    schedule: RunSchedule = field(default_factory=RunSchedule)  # when runs start by themselves
    trainer: Trainer | None = None  # an agent that `serve` also starts
    metrics: MetricsEndpoint | None = None  # for Prometheus; without it none are served
    page: PageSettings | None = None  # the fleet's web page; without it none is served

    @property
    def page_token(self) -> Path:
        """The file with the token that opens the page."""
        return self.journal.with_suffix(".token")

    def __post_init__(self) -> None:
        check_id(self.fleet, "fleet")
        require(self.keep_models >= 1, f"keep_models: expected 1 or more, got {self.keep_models}")
        require(
            0 <= self.keep_sums_mb <= _SUMS_MAX_MB,
            f"keep_sums_mb: expected 0 to {_SUMS_MAX_MB}, got {self.keep_sums_mb}",
        )
        require(
            self.rules.absent == "skip" or self.keep_sums_mb > 0,
            'keep_sums_mb: 0 keeps no contribution that absent = "last" could count; write a '
            'larger number, or absent = "skip"',
        )
        require(
            1_000 <= self.delivery_bytes_per_s <= _MAX_DELIVERY,
            f"delivery_bytes_per_s: expected 1000 to {_MAX_DELIVERY}, "
            f"got {self.delivery_bytes_per_s}",
        )


def load_fleet(path: Path) -> FleetConfig:
    """Read fleet.toml; raise ConfigError with the file, the key and what to write instead."""
    return load(FleetConfig, path)


def _seconds(text: str) -> float:
    """The duration "90s", "30m", "24h" or "7d" in seconds; raises ValueError."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    require(
        found is not None,
        f'every: expected a whole number with a unit, such as "30m", "24h" or "7d", got {text!r}',
    )
    assert found is not None
    return int(found[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[found[2]]


def _time_of_day(text: str) -> time:
    """The time of day "HH:MM"; raises ValueError."""
    found = re.fullmatch(r"([01][0-9]|2[0-3]):([0-5][0-9])", text)
    require(found is not None, f'at: expected a time of day such as "02:30", got {text!r}')
    assert found is not None
    return time(int(found[1]), int(found[2]))
