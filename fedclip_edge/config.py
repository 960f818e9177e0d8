"""Readers of fleet.toml and agent.toml; each file becomes a checked, frozen dataclass.

The dataclasses raise ValueError for a value out of range; `load_fleet` and `load_agent` raise
ConfigError instead.

Law: a relative path is relative to the folder of the file that contains it, whatever the working
directory.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import time
from pathlib import Path
from typing import Any, Literal, TypeVar

from fedclip_edge.decoding import DecodeError, decode_table
from fedclip_edge.errors import ConfigError
from fedclip_edge.records import COORDINATOR, Plan, Role, check_domain, check_id, check_sha256
from fedclip_edge.storage.toml_file import read_toml

T = TypeVar("T")

_SUMS_MAX_MB = 1_000_000  # 1 TB; a journal of this size is a mistake
_MQTT_MAX_BYTES = 268_435_460  # the largest remaining length of a packet, plus 5 bytes of header


@dataclass(frozen=True)
class BrokerAddress:
    """Address of the MQTT broker, and the login data. With `ca`, the connection uses TLS."""

    host: str = "127.0.0.1"  # name or IP address of the MQTT broker
    port: int = 1883  # TCP port of the broker; 8883 is usual for TLS
    username: str = ""  # user name, only for a broker that asks for a password
    password: str = ""  # password of `username`
    keepalive_s: int = 30  # MQTT keep-alive in seconds; a lower value detects a lost link sooner
    # largest MQTT packet that the broker accepts, in bytes; set it if the broker announces no limit
    max_packet_bytes: int | None = None
    ca: Path | None = None  # CA certificate that verifies the broker's certificate; enables TLS
    certificate: Path | None = None  # own certificate, signed by `ca`, for login; needs `key`
    key: Path | None = None  # private key of `certificate`; it also signs this program's messages

    def __post_init__(self) -> None:
        _require(bool(self.host.strip()), "host: expected a host name or an IP address")
        _require(1 <= self.port <= 65535, f"port: expected 1 to 65535, got {self.port}")
        _require(
            5 <= self.keepalive_s <= 3600,
            f"keepalive_s: expected 5 to 3600 seconds, got {self.keepalive_s}",
        )
        _require(
            self.max_packet_bytes is None or 1 <= self.max_packet_bytes <= _MQTT_MAX_BYTES,
            f"max_packet_bytes: expected 1 to {_MQTT_MAX_BYTES}, got {self.max_packet_bytes}",
        )
        _require(
            (self.certificate is None) == (self.key is None),
            "certificate and key: expected both or neither",
        )
        _require(
            self.certificate is None or self.ca is not None,
            "ca: missing; a certificate also needs ca, the certificate of its authority",
        )


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
        _require(self.devices >= 1, f"devices: expected 1 or more, got {self.devices}")
        _require(0 < self.quorum <= 1, f"quorum: expected above 0 and at most 1, got {self.quorum}")
        # Infinity is refused: JSON cannot represent it, and every round must have a deadline.
        _require(
            0 < self.deadline_s < math.inf, f"deadline_s: expected above 0, got {self.deadline_s}"
        )
        _require(0 <= self.grace_s < math.inf, f"grace_s: expected 0 or more, got {self.grace_s}")
        _require(self.cohort >= 0, f"cohort: expected 0 or more, got {self.cohort}")
        _require(
            self.upload_slots >= 1, f"upload_slots: expected 1 or more, got {self.upload_slots}"
        )
        _require(
            self.absent == "skip" or self.cohort == 0,
            'cohort: absent = "last" counts every device, and a cohort leaves some out; leave out '
            "one of the two",
        )


@dataclass(frozen=True)
class Trainer:
    """An ordinary agent that `serve` also starts, for example on the operator's own pictures."""

    config: Path  # agent.toml of an agent that `serve` starts on the same machine


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
        _require(
            self.every is None or self.at is None,
            "every and at: expected one of them, not both",
        )
        if self.every is not None:
            _seconds(self.every)
        if self.at is not None:
            _time_of_day(self.at)
        _require(
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
    # MB of last contributions that stay, for `forget` and `absent`; 0 keeps none
    keep_sums_mb: int = 1000
    broker: BrokerAddress = field(default_factory=BrokerAddress)  # MQTT broker and login
    registry: Path | None = None  # devices.json of the enrolled devices; without it any may join
    rules: RunRules = field(default_factory=RunRules)  # when rounds open, close and are repeated
    plan: Plan = field(default_factory=Plan)  # the training: method, rounds, codecs, strategy
    schedule: RunSchedule = field(default_factory=RunSchedule)  # when runs start by themselves
    trainer: Trainer | None = None  # an agent that `serve` also starts

    def __post_init__(self) -> None:
        check_id(self.fleet, "fleet")
        _require(self.keep_models >= 1, f"keep_models: expected 1 or more, got {self.keep_models}")
        _require(
            0 <= self.keep_sums_mb <= _SUMS_MAX_MB,
            f"keep_sums_mb: expected 0 to {_SUMS_MAX_MB}, got {self.keep_sums_mb}",
        )
        _require(
            self.rules.absent == "skip" or self.keep_sums_mb > 0,
            'keep_sums_mb: 0 keeps no contribution that absent = "last" could count; write a '
            'larger number, or absent = "skip"',
        )


@dataclass(frozen=True)
class DataConfig:
    """Folder of a device's labelled pictures, and the shares of its split.

    The hash of a file decides its side: training, validation or test.
    """

    folder: Path  # folder of the pictures, with one subfolder for each class
    train: float = 0.6  # share of the pictures used for training
    validation: float = 0.2  # share of the pictures used to choose between models
    test: float = 0.2  # share of the pictures used to measure accuracy

    def __post_init__(self) -> None:
        shares = (self.train, self.validation, self.test)
        _require(
            min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6,
            f"train, validation, test: expected shares of 0 or more that add up to 1, got {shares}",
        )


@dataclass(frozen=True)
class EncoderConfig:
    """Settings for running the encoder on this box."""

    # where ONNX Runtime runs the encoder; there is no fallback to another provider
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    threads: int = 1  # CPU threads of the encoder
    batch_size: int = 8  # pictures encoded at once; 8 is fastest for ViT-B-32 on a CPU
    engine_dir: Path | None = None  # folder of TensorRT engines; default: the user's cache folder

    def __post_init__(self) -> None:
        _require(self.threads >= 1, f"threads: expected 1 or more, got {self.threads}")
        _require(self.batch_size >= 1, f"batch_size: expected 1 or more, got {self.batch_size}")


@dataclass(frozen=True)
class AgentConfig:
    """Content of agent.toml: the settings of one device."""

    id: str  # name of the device, unique in the fleet: 1 to 64 of a-z, 0-9 and '-'
    fleet: str  # name of the fleet, as in the coordinator's fleet.toml
    bundle: Path  # folder of the bundle, a copy of the coordinator's
    data: DataConfig  # the device's pictures
    state_dir: Path  # folder for the device's key, feature cache, predictions and personal model
    domain: str = ""  # name of the place or style of the pictures, shown in reports
    roles: tuple[Role, ...] = ("train", "evaluate")  # train, evaluate or both
    # public key of the only coordinator to accept; empty: the key first seen in each run
    coordinator_key: str = ""
    # Four limits on what is sent; no plan of a coordinator lowers them.
    min_per_class: int = 5  # nothing is sent of a class with fewer pictures
    min_votes: int = 5  # the device votes with no fewer validation pictures
    methods: tuple[str, ...] | None = None  # names of the methods that a plan may use; None: all
    reports: bool = True  # false: the device evaluates for itself and sends no accuracy
    broker: BrokerAddress = field(default_factory=BrokerAddress)  # MQTT broker and login
    encoder: EncoderConfig = field(default_factory=EncoderConfig)  # how the encoder runs here

    def __post_init__(self) -> None:
        check_id(self.fleet, "fleet")
        check_id(self.id, "id")
        check_domain(self.domain)
        if self.coordinator_key:
            check_sha256(self.coordinator_key, "coordinator_key")
        _require(self.id != COORDINATOR, f"id: {COORDINATOR!r} is reserved; choose another id")
        _require(
            len(self.roles) > 0, "roles: expected 'train', 'evaluate' or both, got an empty list"
        )
        _require(
            "train" not in self.roles or self.data.train > 0,
            "roles: 'train' needs a share `train` above 0 in [data]",
        )
        _require(
            self.min_per_class >= 1, f"min_per_class: expected 1 or more, got {self.min_per_class}"
        )
        _require(self.min_votes >= 1, f"min_votes: expected 1 or more, got {self.min_votes}")
        _require(
            self.methods is None or len(self.methods) > 0,
            "methods: expected at least one name, got an empty list; for a device that sends no "
            "updates, write roles = ['evaluate'] and leave out methods",
        )
        _require(
            self.methods is None or len(set(self.methods)) == len(self.methods),
            f"methods: expected different names, got {self.methods}",
        )
        _require(
            self.reports or "train" in self.roles,
            "reports: false leaves a device without the role 'train' nothing to send; write "
            "reports = true, or add 'train' to roles",
        )


def load_fleet(path: Path) -> FleetConfig:
    """Read fleet.toml; raise ConfigError with the file, the key and what to write instead."""
    return _load(FleetConfig, path)


def load_agent(path: Path) -> AgentConfig:
    """Read agent.toml; raise ConfigError with the file, the key and what to write instead."""
    return _load(AgentConfig, path)


def read_table(cls: type[T], table: Mapping[str, Any], where: str, base: Path | None = None) -> T:
    """Build the dataclass `cls` from settings that a person wrote, as `decode_table` does.

    Raises ConfigError in the cases where `decode_table` raises DecodeError.
    """
    try:
        return decode_table(cls, table, where, base)
    except DecodeError as error:
        raise ConfigError(str(error)) from error


def unknown(what: str, name: str, known: Collection[str]) -> ConfigError:
    """Return the error for a name that is not in `known`; it suggests the nearest name, or all."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known names: {', '.join(known)}"
    return ConfigError(f"unknown {what} {name!r}; {hint}")


def _load(cls: type[T], path: Path) -> T:
    return read_table(cls, read_toml(path), str(path), path.resolve().parent)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _seconds(text: str) -> float:
    """The duration "90s", "30m", "24h" or "7d" in seconds; raises ValueError."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    _require(
        found is not None,
        f'every: expected a whole number with a unit, such as "30m", "24h" or "7d", got {text!r}',
    )
    assert found is not None
    return int(found[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[found[2]]


def _time_of_day(text: str) -> time:
    """The time of day "HH:MM"; raises ValueError."""
    found = re.fullmatch(r"([01][0-9]|2[0-3]):([0-5][0-9])", text)
    _require(found is not None, f'at: expected a time of day such as "02:30", got {text!r}')
    assert found is not None
    return time(int(found[1]), int(found[2]))
