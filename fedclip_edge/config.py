"""Reading and checking of fleet.toml and agent.toml, as frozen dataclasses.

The dataclasses raise ValueError for a value out of range; `load_fleet` and `load_agent` raise
ConfigError instead.

Law: a relative path is relative to the file that contains it, so a configuration means the same in
every working directory.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from fedclip_edge.decoding import DecodeError, decode_table
from fedclip_edge.errors import ConfigError
from fedclip_edge.records import Plan, Role, Scalar, check_domain, check_id, check_sha256

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

_MQTT_MAX_BYTES = 268_435_460  # the largest remaining length of a packet, plus 5 bytes of header


@dataclass(frozen=True)
class BrokerAddress:
    """Address of the MQTT broker and the login there; with `ca` over TLS."""

    host: str = "127.0.0.1"
    port: int = 1883
    username: str = ""
    password: str = ""
    keepalive_s: int = 30
    max_packet_bytes: int | None = None  # the broker's limit, where it does not announce one
    ca: Path | None = None  # the authority that must have issued the broker's certificate
    certificate: Path | None = None  # our own, of the same authority; its name is the user name
    key: Path | None = None  # the certificate's key, which also signs our messages

    def __post_init__(self) -> None:
        _require(bool(self.host.strip()), "host: expected a name or an address")
        _require(1 <= self.port <= 65535, f"port: expected 1 to 65535, got {self.port}")
        _require(5 <= self.keepalive_s <= 3600, "keepalive_s: expected 5 to 3600 seconds")
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
            "ca: expected the authority's certificate beside the device's own",
        )


@dataclass(frozen=True)
class RunRules:
    """Rules for opening, closing and repeating a round; durations in seconds."""

    devices: int = 2  # training devices online before round 1; later rounds need a quorum of them
    quorum: float = 0.75  # share of the cohort that must have contributed
    deadline_s: float = 600.0  # longest time of an attempt
    grace_s: float = 30.0  # how long a round waits for a device that went away
    cohort: int = 0  # devices per round; 0 takes all that are online
    upload_slots: int = 8  # devices that may upload at the same time

    def __post_init__(self) -> None:
        _require(self.devices >= 1, f"devices: expected 1 or more, got {self.devices}")
        _require(0 < self.quorum <= 1, f"quorum: expected above 0 up to 1, got {self.quorum}")
        # Infinity is refused: JSON cannot carry it to the devices, and no round waits for all.
        _require(
            0 < self.deadline_s < math.inf, f"deadline_s: expected above 0, got {self.deadline_s}"
        )
        _require(0 <= self.grace_s < math.inf, f"grace_s: expected 0 or more, got {self.grace_s}")
        _require(self.cohort >= 0, f"cohort: expected 0 or more, got {self.cohort}")
        _require(self.upload_slots >= 1, "upload_slots: expected 1 or more")


@dataclass(frozen=True)
class Trainer:
    """An ordinary agent that `serve` starts as well, on the operator's pictures."""

    config: Path


@dataclass(frozen=True)
class FleetConfig:
    """Content of fleet.toml: one federation, as its coordinator runs it."""

    fleet: str
    bundle: Path  # the encoder that devices must have, and the classes
    journal: Path = Path("journal.sqlite")
    broker: BrokerAddress = field(default_factory=BrokerAddress)
    registry: Path | None = None  # devices.json of the enrolled devices; None admits any device
    rules: RunRules = field(default_factory=RunRules)
    plan: Plan = field(default_factory=Plan)
    trainer: Trainer | None = None

    def __post_init__(self) -> None:
        check_id(self.fleet, "fleet")


@dataclass(frozen=True)
class DataConfig:
    """Folder of a device's labelled pictures (a sub-folder per class), and shares of the split."""

    folder: Path
    train: float = 0.6
    validation: float = 0.2  # only these choose a model
    test: float = 0.2

    def __post_init__(self) -> None:
        shares = (self.train, self.validation, self.test)
        _require(
            min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6,
            f"train, validation, test: expected shares of 0 or more that add up to 1, got {shares}",
        )


@dataclass(frozen=True)
class EncoderConfig:
    """Settings for running the encoder on this box."""

    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    threads: int = 1
    batch_size: int = 8  # the fastest for ViT-B-32 on CPU: larger ones do not fit into its cache
    engine_dir: Path | None = None  # of TensorRT's engines; None is the user's cache folder

    def __post_init__(self) -> None:
        _require(self.threads >= 1, f"threads: expected 1 or more, got {self.threads}")
        _require(self.batch_size >= 1, f"batch_size: expected 1 or more, got {self.batch_size}")


@dataclass(frozen=True)
class AgentConfig:
    """Content of agent.toml: one device."""

    id: str
    fleet: str
    bundle: Path
    data: DataConfig
    state_dir: Path  # of the device's key, its feature cache and its predictions
    domain: str = ""  # a name for the pictures' origin, shown in reports
    roles: tuple[Role, ...] = ("train", "evaluate")
    coordinator_key: str = ""  # the only one to accept; empty: the first that a run shows
    broker: BrokerAddress = field(default_factory=BrokerAddress)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        check_id(self.fleet, "fleet")
        check_id(self.id, "id")
        check_domain(self.domain)
        if self.coordinator_key:
            check_sha256(self.coordinator_key, "coordinator_key")
        _require(self.id != "coordinator", "id: 'coordinator' is reserved")
        _require(len(self.roles) > 0, "roles: expected train, evaluate or both")
        _require(
            "train" not in self.roles or self.data.train > 0,
            "roles: 'train' needs a [data] train share above 0",
        )


def load_fleet(path: Path) -> FleetConfig:
    """Read fleet.toml; raise ConfigError with the file, the key and what to write instead."""
    return _load(FleetConfig, path)


def load_agent(path: Path) -> AgentConfig:
    """Read agent.toml; raise ConfigError with the file, the key and what to write instead."""
    return _load(AgentConfig, path)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; raise ConfigError where it is missing, unreadable or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; write one or name another file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def parse_value(text: str) -> Scalar:
    """Parse `text` as a TOML scalar (3, 0.5, true); return it as text where it is none."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, str | int | float | bool) else text


def read_table(cls: type[T], table: Mapping[str, Any], where: str, base: Path | None = None) -> T:
    """Build the dataclass `cls` from settings that a person wrote, as `decode_table` does.

    Raises ConfigError where they do not fit.
    """
    try:
        return decode_table(cls, table, where, base)
    except DecodeError as error:
        raise ConfigError(str(error)) from error


def unknown(what: str, name: str, known: Collection[str]) -> ConfigError:
    """Return the error for a name that is not in `known`; it names the nearest one, or all."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    return ConfigError(f"unknown {what} {name!r}; {hint}")


def _load(cls: type[T], path: Path) -> T:
    return read_table(cls, read_toml(path), str(path), path.resolve().parent)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
