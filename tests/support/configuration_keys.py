"""Every key of fleet.toml and agent.toml, found in the dataclasses that read them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from configuration_meanings import MEANINGS
from configuration_ranges import RANGES, Range
from reference_markdown import any_of, prose

from fedclip_edge.agent.trainer import allowed_methods
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.config.reading import read_table
from fedclip_edge.learning import methods, strategies

FILES: Mapping[str, type[Any]] = {"fleet.toml": FleetConfig, "agent.toml": AgentConfig}


@dataclass(frozen=True)
class Table:
    """A table of a file; `path` has the names of the tables around it and its own."""

    file: str
    path: tuple[str, ...]
    cls: type[Any]

    def entries(self) -> list[Key]:
        hints = typing.get_type_hints(self.cls)
        return [Key(self, f, hints[f.name]) for f in dataclasses.fields(self.cls)]


@dataclass(frozen=True)
class Key:
    """A key of a table; `hint` is its type with the names resolved."""

    table: Table
    field: dataclasses.Field[Any]
    hint: Any

    @property
    def name(self) -> str:
        return self.field.name

    @property
    def kind(self) -> Any:
        """The type of a given value: `hint` without None."""
        if get_origin(self.hint) in (typing.Union, types.UnionType):
            (kind,) = (a for a in get_args(self.hint) if a is not type(None))
            return kind
        return self.hint

    @property
    def is_table(self) -> bool:
        return dataclasses.is_dataclass(self.kind) or get_origin(self.kind) is Mapping

    @property
    def owner(self) -> type[Any]:
        """The class that has the range and the meaning: the first base with an entry."""
        for cls in self.table.cls.__mro__:
            if self.name in RANGES.get(cls, {}):
                return cls
        raise KeyError(f"no range for {self.table.cls.__qualname__}.{self.name}")

    @property
    def range(self) -> Range:
        return RANGES[self.owner][self.name]

    @property
    def meaning(self) -> str:
        if self.name not in MEANINGS.get(self.owner, {}):
            raise KeyError(f"no meaning for {self.owner.__qualname__}.{self.name}")
        return MEANINGS[self.owner][self.name]

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    def type_and_range(self) -> str:
        if self.choices:
            return any_of(f'"{choice}"' for choice in self.choices)
        if self.kind is bool:
            return "`true` or `false`"
        names = {int: "integer", float: "number", str: "text", Path: "path"}
        name = names.get(self.kind, "list")
        return f"{name}, {prose(self.range.text)}" if self.range.text else name

    def default(self) -> str:
        missing = dataclasses.MISSING
        if self.field.default is missing and self.field.default_factory is missing:
            return "required"
        return "none" if self.field.default is None else f"`{toml(self.field.default)}`"


def tables() -> Iterator[Table]:
    """Every table of both files, without the options of methods and strategies."""

    def below(table: Table) -> Iterator[Table]:
        yield table
        for key in table.entries():
            if dataclasses.is_dataclass(key.kind):
                cls = typing.cast("type[Any]", key.kind)
                yield from below(Table(table.file, (*table.path, key.name), cls))

    for file, cls in FILES.items():
        yield from below(Table(file, (), cls))


def method_options(name: str) -> Table:
    cls = type(methods.get(name).check_options({}))
    return Table("fleet.toml", ("plan", "options"), cls)


def strategy_options(name: str) -> Table:
    return Table("fleet.toml", ("plan", "strategy_options"), strategies.get(name).options)


def toml(value: object) -> str:
    """A default as it is written in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str | Path) else str(value)


def load(file: str, table: Mapping[str, Any]) -> Any:
    """Read `table` as the file's command does; raises ConfigError."""
    config = read_table(FILES[file], table, file, Path("/etc/fedclip-edge"))
    if isinstance(config, FleetConfig):
        return dataclasses.replace(config, plan=methods.with_defaults(config.plan))
    if isinstance(config, AgentConfig):
        allowed_methods(config)
    return config
