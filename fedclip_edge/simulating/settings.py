"""The parser of `--methods`: the methods and settings to compare.

    zeroshot,fedclip,fedclip@lr=1e-3,loss=cross-entropy,fedclip:local,ridge:pooled@l2=0.3

A name may be followed by `:local` or `:pooled`. With `:local` each device trains alone, which is
the lower reference for the federation. With `:pooled` one device trains on the training pictures of
all devices, which is the upper reference. Without either, the setting is federated. After `@` come
options of the method or of the plan (rounds, strategy, codec_up, ...).
`strategy.NAME` is an option of the strategy. A `name=value` after a comma belongs to the setting
before it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from fedclip_edge.config.reading import read_table
from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods
from fedclip_edge.records import Plan, Scalar
from fedclip_edge.storage.toml_file import parse_value

Line = Literal["federated", "local", "pooled"]
_LINES: Mapping[str, Line] = {"": "federated", "local": "local", "pooled": "pooled"}
# Fields of the plan that a setting may set. Not the method and the seed: both are given elsewhere.
_OF_PLAN = {f.name for f in fields(Plan)} - {
    "method",
    "options",
    "strategy_options",
    "seed",
    "local_baseline",
}
_OF_STRATEGY = "strategy."


@dataclass(frozen=True)
class Setting:
    """One setting of the comparison; `label` is its text as typed.

    `line` is "federated", "local" (each device alone) or "pooled" (one device with all pictures).
    """

    label: str
    plan: Plan
    line: Line = "federated"


def parse_settings(text: str, rounds: int | None) -> tuple[Setting, ...]:
    """Parse `--methods`; `rounds` applies to every method that takes more than one round.

    If `rounds` is None, each method runs its own number of rounds. Raises ConfigError for bad
    syntax, a repeated setting, an unknown name or a value out of range.
    """
    pieces: list[list[str]] = []
    for piece in (part.strip() for part in text.split(",")):
        head, _, _ = piece.partition("=")
        if pieces and "=" in piece and "@" not in head:
            pieces[-1].append(piece)
        else:
            pieces.append([piece])
    settings = [_setting(piece, rounds) for piece in pieces]
    labels = [setting.label for setting in settings]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"--methods contains {label!r} twice; remove one")
    return tuple(settings)


def _setting(pieces: list[str], rounds: int | None) -> Setting:
    label = ",".join(pieces)
    head, at, first = pieces[0].partition("@")
    name, _, line = head.partition(":")
    if not name:
        raise ConfigError(
            f"--methods: {label!r} has no method name; write for example zeroshot,fedclip"
        )
    traits = methods.get(name).traits
    if line not in _LINES:
        near = difflib.get_close_matches(line, ["local", "pooled"], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "write :local, :pooled or neither"
        raise ConfigError(f"--methods: {label!r}: unknown suffix {line!r}; {hint}")
    of_plan: dict[str, Scalar] = {"rounds": 1 if traits.rounds == 1 else rounds or 0}
    options: dict[str, Scalar] = {}
    of_strategy: dict[str, Scalar] = {}
    for piece in [*([first] if at else []), *pieces[1:]]:
        key, equals, value = piece.partition("=")
        if not equals or not key or not value:
            raise ConfigError(f"--methods: {label!r}: {piece!r} is not NAME=VALUE")
        if key.startswith(_OF_STRATEGY):
            of_strategy[key.removeprefix(_OF_STRATEGY)] = parse_value(value)
        else:
            (of_plan if key in _OF_PLAN else options)[key] = parse_value(value)
    table = {"method": name, "strategy_options": of_strategy, **of_plan}
    plan = read_table(Plan, table, f"--methods: {label!r}")
    return Setting(label, methods.with_defaults(replace(plan, options=options)), _LINES[line])
