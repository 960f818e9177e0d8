"""docs/reference/configuration.md: every key of fleet.toml and agent.toml."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import reference_markdown as md
from configuration_keys import Key, Table, method_options, strategy_options, tables
from configuration_meanings import TABLES

from fedclip_edge.learning import methods, strategies
from fedclip_edge.learning.options import Training

# Tables with their heading on the page.
_SECTIONS = {
    "plan.options": "options-of-the-methods",
    "plan.strategy_options": "options-of-the-strategies",
}

_SHARED = (("broker",), ("page",))  # tables that are the same in both files

_HEADER = ("key", "type and range", "default", "meaning")
_INTRO = """\
`fleet.toml` configures the coordinator (`fedclip-edge serve fleet.toml`), and `agent.toml`
configures one device (`fedclip-edge agent agent.toml`). Both are [TOML](https://toml.io) files.
`device/fleet.example.toml` and `device/agent.example.toml` show every key.

- A relative path is relative to the folder of the file. `~` is the home folder.
- An unknown key, a missing key, a wrong type or a value out of range stops the command with
  [exit code](exit-codes.md) 10. The message names the file, the table and the key; for a mistake in
  the TOML itself, it quotes the line and says what is usual there.
- The file may be UTF-8, or UTF-16 with a mark (BOM), with any line ends.
- An integer is accepted where a number is expected.
- An id is 1 to 64 characters of `a-z`, `0-9` and `-`, and does not start or end with `-`.
- A default of "none" means that the key has no value unless the file gives one."""


@dataclass(frozen=True)
class Rule:
    """A rule about several keys, with tables that break it and the same ones mended."""

    text: str
    file: str
    refused: dict[str, Any]
    taken: dict[str, Any]


def _fleet(plan: dict[str, Any]) -> dict[str, Any]:
    return {"fleet": "lab", "bundle": "bundle", "plan": plan}


def agent(**tables: Any) -> dict[str, Any]:
    """A complete agent.toml, with `tables` put in place of its own."""
    least = {"id": "a", "fleet": "lab", "bundle": "b", "state_dir": "s", "data": {"folder": "p"}}
    return {**least, **tables}


def _named(chosen: Iterable[str]) -> str:
    *first, last = (f"`{name}`" for name in chosen)
    return f"{', '.join(first)} and {last}" if first else last


def _having(trait: str) -> str:
    return _named(n for n in methods.names() if getattr(methods.get(n).traits, trait))


_ROBUST = _named(n for n in strategies.names() if strategies.get(n).is_uniform)

BROKER_RULES = (
    Rule(
        "`certificate` and `key` are given together, or neither is.",
        "agent.toml",
        agent(broker={"ca": "c", "certificate": "d"}),
        agent(broker={"ca": "c", "certificate": "d", "key": "k"}),
    ),
    Rule(
        "`certificate` needs `ca` as well.",
        "agent.toml",
        agent(broker={"certificate": "d", "key": "k"}),
        agent(broker={"ca": "c", "certificate": "d", "key": "k"}),
    ),
)
AGENT_RULES = (
    Rule(
        "`train`, `validation` and `test` under `[data]` add up to 1.",
        "agent.toml",
        agent(data={"folder": "p", "train": 0.7}),
        agent(data={"folder": "p", "train": 0.7, "test": 0.1}),
    ),
    Rule(
        "The role `train` needs a `train` share above 0.",
        "agent.toml",
        agent(data={"folder": "p", "train": 0.0, "test": 0.8}),
        agent(data={"folder": "p", "train": 0.0, "test": 0.8}, roles=["evaluate"]),
    ),
    Rule(
        "`reports = false` needs the role `train`; otherwise the device has nothing to send.",
        "agent.toml",
        agent(roles=["evaluate"], reports=False),
        agent(roles=["train", "evaluate"], reports=False),
    ),
)
PLAN_RULES = (
    Rule(
        f"{_having('one_round')} finish in one round: `rounds` is 1 or left out.",
        "fleet.toml",
        _fleet({"method": "ridge", "rounds": 2}),
        _fleet({"method": "ridge", "rounds": 1}),
    ),
    Rule(
        f"A `strategy` other than `{strategies.DEFAULT}` needs a method whose updates are changes "
        f"of a model: {_having('is_averaged')}.",
        "fleet.toml",
        _fleet({"method": "ridge", "strategy": "fedadam"}),
        _fleet({"method": "linear", "strategy": "fedadam"}),
    ),
    Rule(
        f'{_ROBUST} need `weighting = "uniform"` under `[plan.options]`.',
        "fleet.toml",
        _fleet({"strategy": "median", "options": {"weighting": "pictures"}}),
        _fleet({"strategy": "median"}),
    ),
    Rule(
        f"`personal_epochs` is refused with `zeroshot`, which trains nothing, and with "
        f"{_named(n for n in methods.names() if methods.get(n).personal)}, which make a personal "
        f"model anyway, and with {_having('learns_from_validation')}, which leave no picture to "
        "choose with.",
        "fleet.toml",
        _fleet({"method": "tip-adapter", "personal_epochs": 1}),
        _fleet({"method": "tip-adapter"}),
    ),
    Rule(
        '`auto` trains two methods and mixes them by the vote: it needs `vote = "on"`, and at least '
        "2 `rounds` (0 means 11).",
        "fleet.toml",
        _fleet({"method": "auto", "rounds": 1}),
        _fleet({"method": "auto", "rounds": 2}),
    ),
    Rule(
        "`personal_epochs` is at most 1 for a method of one round.",
        "fleet.toml",
        _fleet({"method": "ridge", "personal_epochs": 2}),
        _fleet({"method": "ridge", "personal_epochs": 1}),
    ),
)
RULES = (*BROKER_RULES, *AGENT_RULES, *PLAN_RULES)


def page() -> str:
    found = {(table.file, table.path): table for table in tables()}
    of_methods = {name: method_options(name) for name in methods.names()}
    parts = ["# Configuration files", md.notice("the code that reads the files"), _INTRO]
    for file in ("fleet.toml", "agent.toml"):
        parts += [f"## {file}", _keys(found[file, ()])]
        for (theirs, path), table in found.items():
            if theirs == file and path and path not in _SHARED:
                parts += [f"### [{'.'.join(path)}]", TABLES[".".join(path)], _keys(table)]
                parts.append(_rules(PLAN_RULES) if path == ("plan",) else "")
        parts.append(_rules(AGENT_RULES) if file == "agent.toml" else "")
    parts += [
        "## [broker]",
        f"{TABLES['broker']} It has the same keys in both files.",
        _keys(found["agent.toml", ("broker",)]),
        _rules(BROKER_RULES),
        "## [page]",
        f"{TABLES['page']} It has the same keys in both files.",
        _keys(found["agent.toml", ("page",)]),
        "## Options of the methods",
        "The keys under `[plan.options]` for each `method`.",
        *_shared_options(of_methods),
        *_options(of_methods),
        "## Options of the strategies",
        "The keys under `[plan.strategy_options]` for each `strategy`.",
        *_options({name: strategy_options(name) for name in strategies.names()}),
    ]
    return md.page(parts)


def _options(found: Mapping[str, Table]) -> Iterator[str]:
    """A section for each set of keys, with the names of all that have it."""
    together: dict[type[Any], list[str]] = {}
    for name, table in found.items():
        together.setdefault(table.cls, []).append(name)
    for names in together.values():
        own = [key for key in found[names[0]].entries() if key.owner is not Training]
        if own:
            yield "### " + ", ".join(names)
            yield _table(own)
    without = [name for name, table in found.items() if not table.entries()]
    yield f"{_named(without)} {'has' if len(without) == 1 else 'have'} no options."


def _shared_options(found: Mapping[str, Table]) -> Iterator[str]:
    """The section on the options that all methods trained by gradients have."""
    trained = {name: t for name, t in found.items() if issubclass(t.cls, Training)}
    yield "### Shared by " + ", ".join(trained)
    keys = zip(
        *([k for k in t.entries() if k.owner is Training] for t in trained.values()), strict=True
    )
    rows = []
    for each in keys:
        by_default: dict[str, list[str]] = {}
        for name, key in zip(trained, each, strict=True):
            by_default.setdefault(key.default(), []).append(name)
        first = each[0]
        defaults = (
            default if len(by_default) == 1 else f"{default} ({', '.join(names)})"
            for default, names in by_default.items()
        )
        rows.append((*_row(first)[:2], ", ".join(defaults), _row(first)[3]))
    yield md.table(_HEADER, rows)


def _keys(table: Table) -> str:
    return _table(table.entries())


def _table(keys: Iterable[Key]) -> str:
    return md.table(_HEADER, map(_row, keys))


def _row(key: Key) -> tuple[str, ...]:
    if not key.is_table:
        return f"`{key.name}`", key.type_and_range(), key.default(), md.prose(key.meaning)
    name = ".".join((*key.table.path, key.name))
    link = _SECTIONS.get(name, name.replace(".", ""))  # as the manual names its headings
    return f"[`[{name}]`](#{link})", "table", "", md.prose(TABLES[name])


def _rules(rules: tuple[Rule, ...]) -> str:
    return "Rules for several keys:\n\n" + "\n".join(f"- {rule.text}" for rule in rules)
