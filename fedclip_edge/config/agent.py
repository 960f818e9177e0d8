"""Settings of a device: agent.toml.

The dataclasses raise ValueError for a value out of range; `load_agent` raises ConfigError instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedclip_edge.config.answers import AnswersConfig
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.config.limits import Limits
from fedclip_edge.config.page import PageSettings
from fedclip_edge.config.reading import load, require
from fedclip_edge.records import COORDINATOR, Role, check_domain, check_id, check_sha256


@dataclass(frozen=True)
class DataConfig:
    """Folder of a device's labelled pictures, and the shares of its split.

    The hash of a file decides its side: training, validation or test. With `group_by`, the group
    of a picture decides, so that pictures of one event are on one side.
    """

    folder: Path  # folder of the pictures, with one subfolder for each class
    train: float = 0.6  # share of the pictures used for training
    validation: float = 0.2  # share of the pictures used to choose between models
    test: float = 0.2  # share of the pictures used to measure accuracy
    labels: Path | None = None  # manifest of labels: CSV or JSON lines
    group_by: Literal["none", "folder", "prefix", "seconds"] = "none"  # pictures of one event
    group_pattern: str = r"(.*)[_-]"  # the first group in the name of a file is its prefix
    group_seconds: float = 10.0  # pictures that are not further apart are of one event

    def __post_init__(self) -> None:
        shares = (self.train, self.validation, self.test)
        require(
            min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6,
            f"train, validation, test: expected shares of 0 or more that add up to 1, got {shares}",
        )
        require(
            0 < self.group_seconds <= 86400,
            f"group_seconds: expected more than 0 and at most 86400, got {self.group_seconds}",
        )
        try:
            groups = re.compile(self.group_pattern).groups
        except re.error as error:
            raise ValueError(
                f"group_pattern: {self.group_pattern!r} is not a regular expression: {error}"
            ) from None
        require(
            groups > 0,
            f"group_pattern: {self.group_pattern!r} has no group in brackets; put the part of the "
            "name that pictures of one event share into (...)",
        )


@dataclass(frozen=True)
class InboxConfig:
    """Folder of pictures that nobody has labelled yet.

    They are answered, and never trained on before a person labels them.
    """

    folder: Path  # folder of the unlabelled pictures, with or without subfolders


Provider = Literal["auto", "cpu", "cuda", "tensorrt", "openvino", "coreml"]
Arithmetic = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class EncoderConfig:
    """Settings for running the encoder on this box."""

    # where the encoder runs. "auto" takes the fastest provider that computes the bundle's features
    # on this box; one that is named is used, or the agent stops.
    provider: Provider = "auto"
    # numbers that the encoder computes with: bf16 is faster on processors that have it, and less
    # exact; only OpenVINO offers it. "auto" takes bf16 where it is faster and exact enough.
    precision: Arithmetic = "auto"
    threads: int = 0  # that decode, and encode on the CPU; 0: one for each usable core
    batch_size: int = 0  # pictures encoded at once; 0: chosen for the number of threads
    engine_dir: Path | None = None  # folder of TensorRT engines; default: the user's cache folder
    fast: bool = False  # decode JPEGs at a lower resolution: faster, with slightly other features

    def __post_init__(self) -> None:
        require(
            self.precision != "bf16" or self.provider in ("auto", "openvino"),
            f"precision: 'bf16' needs provider 'openvino' or 'auto', got {self.provider!r}",
        )
        for name in ("threads", "batch_size"):
            value = getattr(self, name)
            require(value >= 0, f"{name}: expected 0 (chosen here) or more, got {value}")

    @property
    def runs_on(self) -> str:
        """The provider. "auto" is the CPU unless an agent has replaced it by its choice."""
        if self.provider != "auto":
            return self.provider
        return "openvino" if self.precision == "bf16" else "cpu"

    @property
    def label(self) -> str:
        """Provider and numbers, which decide the features: "cpu", or "openvino-bf16"."""
        return f"{self.runs_on}-bf16" if self.precision == "bf16" else self.runs_on


@dataclass(frozen=True)
class AgentConfig:
    """Content of agent.toml: the settings of one device."""

    id: str  # name of the device, unique in the fleet: 1 to 64 of a-z, 0-9 and '-'
    fleet: str  # name of the fleet, as in the coordinator's fleet.toml
    data: DataConfig  # the device's pictures
    state_dir: Path  # folder for all that the device keeps; device/README.md lists its files
    domain: str = ""  # name of the place or style of the pictures, shown in reports
    roles: tuple[Role, ...] = ("train", "evaluate")  # train, evaluate or both
    # public key of the only coordinator to accept; empty: the key first seen in each run
    coordinator_key: str = ""
    # folder of the bundle, a copy of the coordinator's; None: the device fetches it
    bundle: Path | None = None
    export_key: str = ""  # public key whose bundles the device fetches; empty: it fetches none
    # Four limits on what is sent; no plan of a coordinator lowers them.
    min_per_class: int = 5  # nothing is sent of a class with fewer pictures
    min_votes: int = 5  # the device votes with no fewer validation pictures
    methods: tuple[str, ...] | None = None  # names of the methods that a plan may use; None: all
    reports: bool = True  # false: the device evaluates for itself and sends no accuracy
    metrics_file: Path | None = None  # for Prometheus' node_exporter, for example fedclip_edge.prom
    broker: BrokerAddress = field(default_factory=BrokerAddress)  # MQTT broker and login
    inbox: InboxConfig | None = None  # unlabelled pictures; None: none but those in [data]
    encoder: EncoderConfig = field(default_factory=EncoderConfig)  # how the encoder runs here
    answers: AnswersConfig = field(default_factory=AnswersConfig)  # about new pictures
    limits: Limits = field(default_factory=Limits)  # of what the agent takes from its box
    page: PageSettings | None = None  # the box's web page; without it none is served

    @property
    def page_token(self) -> Path:
        """The file with the token that opens the page."""
        return self.state_dir / "page.token"

    def __post_init__(self) -> None:
        check_id(self.fleet, "fleet")
        check_id(self.id, "id")
        check_domain(self.domain)
        for name in ("coordinator_key", "export_key"):
            if getattr(self, name):
                check_sha256(getattr(self, name), name)
        require(
            self.bundle is not None or self.export_key != "",
            "bundle: missing; without it a device needs export_key, to fetch the coordinator's bundle",
        )
        require(self.id != COORDINATOR, f"id: {COORDINATOR!r} is reserved; choose another id")
        require(
            len(self.roles) > 0, "roles: expected 'train', 'evaluate' or both, got an empty list"
        )
        require(
            "train" not in self.roles or self.data.train > 0,
            "roles: 'train' needs a share `train` above 0 in [data]",
        )
        require(
            self.min_per_class >= 1, f"min_per_class: expected 1 or more, got {self.min_per_class}"
        )
        require(self.min_votes >= 1, f"min_votes: expected 1 or more, got {self.min_votes}")
        require(
            self.methods is None or len(self.methods) > 0,
            "methods: expected at least one name, got an empty list; for a device that sends no "
            "updates, write roles = ['evaluate'] and leave out methods",
        )
        require(
            self.methods is None or len(set(self.methods)) == len(self.methods),
            f"methods: expected different names, got {self.methods}",
        )
        require(
            self.reports or "train" in self.roles,
            "reports: false leaves a device without the role 'train' nothing to send; write "
            "reports = true, or add 'train' to roles",
        )


def load_agent(path: Path) -> AgentConfig:
    """Read agent.toml; raise ConfigError with the file, the key and what to write instead."""
    return load(AgentConfig, path)
