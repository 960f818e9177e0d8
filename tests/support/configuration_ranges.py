"""The range of every key of fleet.toml and agent.toml; tests/test_reference.py proves each one.

A range has values that load and values that are refused: its bounds, and the nearest value outside
of each. An option of a method or of a strategy has the range of the class that defines it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedclip_edge.config.agent import AgentConfig, DataConfig, EncoderConfig, InboxConfig
from fedclip_edge.config.answers import AnswersBroker, AnswersConfig
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.config.fleet import FleetConfig, MetricsEndpoint, RunRules, RunSchedule, Trainer
from fedclip_edge.config.limits import Limits
from fedclip_edge.config.page import PageSettings
from fedclip_edge.learning import methods, strategies
from fedclip_edge.learning.methods import (
    auto,
    clip_adapter,
    faa_clip,
    facmic,
    fedclip,
    fedot,
    gda,
    lowrank,
    ridge,
    tip_adapter,
    tofa,
)
from fedclip_edge.learning.options import Training
from fedclip_edge.learning.strategies import adaptive, fedavgm, robust
from fedclip_edge.records import Plan


@dataclass(frozen=True)
class Range:
    """The words of the page, values that load, and values that are refused."""

    text: str
    taken: tuple[Any, ...] = ()
    refused: tuple[Any, ...] = ()


def integers(low: int, high: int | None = None, text: str = "") -> Range:
    """Integers from `low` to `high`; `text` is another way to write `high`."""
    if high is None:
        return Range(f"{low} or more", (low, 10**9), (low - 1, low + 0.5))
    return Range(f"{low} to {text or high}", (low, high), (low - 1, high + 1, low + 0.5))


def numbers(low: float, high: float, *, above: bool = False, below: bool = False) -> Range:
    """Numbers from `low` to `high`; without `low` itself if `above`, without `high` if `below`."""
    inside, outside = [math.nextafter(low, math.inf)], [math.nextafter(low, -math.inf), math.nan]
    (outside if above else inside).append(low)
    inside.append(math.nextafter(high, -math.inf))
    (outside if below else inside).append(high)
    outside.append(math.nextafter(high, math.inf))
    first, last = (re.sub(r"e\+0*", "e", f"{bound:g}") for bound in (low, high))
    start = f"above {first}" if above else first
    if high == math.inf:
        return Range(start if above else f"{start} or more", tuple(inside), tuple(outside))
    end = f"below {last}" if below else last
    between = (" and " if below else " up to ") if above else " to "
    return Range(start + between + end, tuple(inside), tuple(outside))


CHOICE = Range("")  # the values of a Literal; the type names them
TRUTH = Range("", (True, False), (0, 1, "true"))
PATH = Range("", ("a", "a/b.toml", "/a"), ("", 1))
TOPIC = Range(
    "names with `/` between them",
    ("a", "a/b c", "ä" * 200),
    ("", "/a", "a/", "a//b", "a/+", "#", "$SYS/a", "a\n", "a" * 201),
)
TEXT = Range("", ("", "a b", "ä"), (1,))
METHOD = Range("the name of a method", methods.names(), ("nothing", ""))
STRATEGY = Range("the name of a strategy", strategies.names(), ("nothing", ""))
ID = Range(
    "an id",
    ("a", "0", "a-9", "a" * 64),
    ("", "-a", "a-", "A", "a_b", "a/b", "a" * 65),
)

_TRAINING: Mapping[str, Range] = {
    "optimizer": CHOICE,
    "lr": numbers(0, 1, above=True),
    "beta1": numbers(0, 1, below=True),
    "beta2": numbers(0, 1, below=True),
    "eps": numbers(0, 1, above=True),
    "weight_decay": numbers(0, 10),
    "batch_size": integers(2),
    "epochs": integers(1),
    "weighting": CHOICE,
    "proximal_mu": numbers(0, 1e6),
}

KEY = Range("64 lower-case hex digits, or empty", ("", "0f" * 32), ("0f" * 31, "0F" * 32, "a"))

RANGES: Mapping[type[Any], Mapping[str, Range]] = {
    FleetConfig: {
        "fleet": ID,
        "bundle": PATH,
        "journal": PATH,
        "keep_models": integers(1),
        "reports": CHOICE,
        "keep_sums_mb": integers(0, 1_000_000),
        "delivery_bytes_per_s": integers(1_000, 5_000_000),
        "registry": PATH,
    },
    AgentConfig: {
        "id": Range("an id, but not `coordinator`", ID.taken, (*ID.refused, "coordinator")),
        "fleet": ID,
        "bundle": PATH,
        "state_dir": PATH,
        "domain": Range("at most 64 printable characters", ("", "ä" * 64), ("a" * 65, "a\n")),
        "roles": Range(
            '`"train"`, `"evaluate"` or both',
            (["train"], ["evaluate"], ["train", "evaluate"]),
            ([], ["both"], "train"),
        ),
        "coordinator_key": KEY,
        "export_key": KEY,
        "min_per_class": integers(1),
        "min_votes": integers(1),
        "methods": Range(
            "different names of methods, at least one",
            (["ridge"], [*methods.names()]),
            ([], ["ridge", "ridge"], ["nothing"], "ridge"),
        ),
        "reports": TRUTH,
        "metrics_file": PATH,
    },
    BrokerAddress: {
        "host": Range("not empty", ("127.0.0.1", "edge.example"), ("", " ")),
        "port": integers(1, 65535),
        "username": TEXT,
        "password": TEXT,
        "keepalive_s": integers(5, 3600),
        "max_packet_bytes": integers(1, 268_435_460),
        "ca": PATH,
        "certificate": PATH,
        "key": PATH,
    },
    RunRules: {
        "devices": integers(1),
        "quorum": numbers(0, 1, above=True),
        "deadline_s": numbers(0, math.inf, above=True, below=True),
        "grace_s": numbers(0, math.inf, below=True),
        "cohort": integers(0),
        "upload_slots": integers(1),
        "absent": CHOICE,
    },
    PageSettings: {
        "listen": Range(
            "`HOST:PORT`",
            ("127.0.0.1:8080", "[::1]:1", "a.example:65535", "0.0.0.0:80"),
            ("8080", ":8080", "127.0.0.1:0", "127.0.0.1:65536", "::1:8080", ""),
        ),
        "names": Range(
            "host names without a port",
            ([], ["fleet.example", "box-1"], ["10.0.0.7"]),
            ([""], ["fleet.example:80"], ["a b"], ["-a"], "fleet.example"),
        ),
        "certificate": PATH,
        "key": PATH,
    },
    MetricsEndpoint: {
        "listen": Range(
            "`HOST:PORT`",
            ("127.0.0.1:9464", "[::1]:1", "a.example:65535", "0.0.0.0:80"),
            ("9464", ":9464", "a:0", "a:65536", "a:", "a:b", "a:+1", "::1:9464", ""),
        ),
    },
    RunSchedule: {
        "start": CHOICE,
        "every": Range(
            "a whole number with a unit: s, m, h or d",
            ("1s", "30m", "24h", "7d", "999999d"),
            ("", "0h", "24", "1.5h", "-1h", "h", "24 h", "1000000s"),
        ),
        "at": Range(
            "a time of day, HH:MM",
            ("00:00", "02:30", "23:59"),
            ("", "24:00", "2:30", "02:60", "02:30:00"),
        ),
        "new_pictures": integers(1),
        "model": CHOICE,
    },
    Trainer: {"config": PATH},
    DataConfig: {
        "folder": PATH,
        "train": numbers(0, 1),
        "validation": numbers(0, 1),
        "test": numbers(0, 1),
        "labels": PATH,
        "group_by": CHOICE,
        "group_pattern": Range("a regular expression with a group", ("(.*)_",), ("(", "a_")),
        "group_seconds": numbers(0, 86400, above=True),
    },
    InboxConfig: {"folder": PATH},
    EncoderConfig: {
        "provider": CHOICE,
        "precision": CHOICE,
        "threads": integers(0),
        "batch_size": integers(0),
        "engine_dir": PATH,
        "fast": TRUTH,
    },
    Limits: {
        "max_threads": integers(1),
        "nice": integers(0, 19),
        "max_memory_mb": integers(100),
        "max_cache_mb": integers(1),
        "max_temperature_c": numbers(30, 150),
        "on_battery": CHOICE,
    },
    AnswersConfig: {
        "model": CHOICE,
        "top": integers(1),
        "file": PATH,
        "file_bytes": integers(10_000),
        "old_files": integers(0, 1000),
        "event_s": numbers(0, math.inf, above=True, below=True),
        "event_pictures": integers(1),
        "event_share": numbers(0, 1, above=True),
    },
    AnswersBroker: {
        "topic": TOPIC,
        "keep": integers(1, 100_000),
        "home_assistant": TRUTH,
        "discovery_topic": TOPIC,
        "certificate": PATH,
        "key": PATH,
    },
    Plan: {
        "method": METHOD,
        "rounds": integers(0, 1_000_000),
        "seed": integers(0, 2**63 - 1, "2^63 - 1"),
        "codec_up": CHOICE,
        "codec_down": CHOICE,
        "grid_bits": integers(1, 52),
        "max_weight": integers(1, 2**40, "2^40"),
        "max_norm": numbers(0, 1e9, above=True, below=True),
        "strategy": STRATEGY,
        "personal_epochs": integers(0, 1000),
        "vote": CHOICE,
        "local_baseline": TRUTH,
    },
    Training: _TRAINING,
    faa_clip.Options: {"loss": CHOICE},
    facmic.Options: {"loss": CHOICE, "transfer": numbers(0, 1e3)},
    fedclip.Options: {"loss": CHOICE},
    auto.Options: {"min_per_class": integers(1)},
    fedot.Options: {"blocks": integers(1), "map_epochs": integers(1)},
    clip_adapter.Options: {
        "reduction": integers(1),
        "ratio": numbers(0, 1, above=True, below=True),
    },
    lowrank.Options: {"rank": integers(1)},
    ridge.Options: {
        "l2": numbers(0, 1e12, above=True, below=True),
        "prior": numbers(0, 100),
        "min_per_class": integers(1),
    },
    gda.Options: {"share": numbers(0, 100), "min_per_class": integers(1)},
    tip_adapter.Options: {"alpha": numbers(0, 1e4), "beta": numbers(0, 1e4)},
    tofa.Options: {"alpha": numbers(0, 1e3), "min_per_class": integers(1)},
    fedavgm.Options: {"lr": numbers(0, 10, above=True), "momentum": numbers(0, 1, below=True)},
    adaptive.Options: {
        "lr": numbers(0, 10, above=True),
        "beta1": numbers(0, 1, below=True),
        "beta2": numbers(0, 1, below=True),
        "tau": numbers(1e-12, 10),
    },
    robust.Options: {"byzantine": numbers(0, 0.5, below=True)},
}
