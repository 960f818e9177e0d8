"""Conversion of tables from TOML, JSON and the journal to checked dataclasses.

Laws:

- An unknown key is an error that names the nearest known key.
- A value of the wrong type is an error that names both types.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

T = TypeVar("T")

_EXACT_IN_FLOAT = 2**53


class DecodeError(Exception):
    """A table does not fit its dataclass; callers convert this to an error class of their own."""


def decode_table(cls: type[T], table: Mapping[str, Any], where: str, base: Path | None = None) -> T:
    """Build the dataclass `cls` from `table`.

    Every message starts with `where` ("fleet.toml [broker]"). Relative paths, including defaults,
    are relative to `base`; with None they are not changed.

    Raises DecodeError for an unknown key (the message names the nearest known one), a missing key,
    a value of the wrong type, and a value for which the dataclass raises ValueError.
    """
    known = _fields(cls)  # type: ignore[arg-type]  # a class is hashable
    hints = _hints(cls)  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            every = f"known keys: {', '.join(known)}" if known else "no keys are known"
            hint = f"did you mean {near[0]!r}?" if near else every
            raise DecodeError(f"{where}: unknown key {key!r}; {hint}")
    values = {}
    for name, spec in known.items():
        if name in table:
            values[name] = _convert(table[name], hints[name], f"{where}: {name}", base)
        elif spec.default is MISSING and spec.default_factory is MISSING:
            raise DecodeError(f"{where}: the key {name!r} is missing; add it")
        elif base is not None and isinstance(spec.default, Path):
            values[name] = base / spec.default
    try:
        return cls(**values)
    except ValueError as error:
        raise DecodeError(f"{where}: {error}") from error


@functools.cache  # called for every message of every device
def _fields(cls: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls)}


@functools.cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache  # called for every value of every message
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(hint), get_args(hint)


def _name(hint: Any) -> str:
    return "nothing" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _convert(value: Any, hint: Any, where: str, base: Path | None) -> Any:
    """Convert `value`, as TOML or JSON gives it, to the type `hint`."""
    if type(value) is hint:  # not isinstance, because True is also an int
        return value
    origin, arguments = _parts(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        choices = tuple(choice for choice in arguments if choice is not type(None))
        if len(choices) == 1:
            return _convert(value, choices[0], where, base)
        if type(value) in choices:
            return value
    elif dataclasses.is_dataclass(hint) and isinstance(value, dict):
        table, _, key = where.rpartition(": ")
        return decode_table(typing.cast("type[Any]", hint), value, f"{table} [{key}]", base)
    elif hint is Path and isinstance(value, str) and value:
        if not value.isprintable() and (control := re.search(r"[\0-\x1f]", value)):
            raise DecodeError(
                f"{where}: the path {value!r} contains the control character {control[0]!r}; in "
                "double quotes, TOML reads \\t, \\n and others as such characters, so write a path "
                "with /, or in '...'"
            )
        try:
            return (base or Path()) / Path(value).expanduser()
        except RuntimeError as error:  # "~user" of a user that does not exist on this machine
            raise DecodeError(f"{where}: {value!r}: {error}") from None
    elif origin is Literal:
        if value in arguments:
            return value
        choices = tuple(repr(choice) for choice in arguments)
        raise DecodeError(f"{where}: expected {' or '.join(choices)}, got {reprlib.repr(value)}")
    elif origin is tuple and isinstance(value, list):
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise DecodeError(f"{where}: expected a list of {len(arguments)}, got {len(value)}")
        return tuple(_convert(item, arguments[0], where, base) for item in value)
    elif origin is Mapping and isinstance(value, dict):
        return {k: _convert(v, arguments[1], f"{where}.{k}", base) for k, v in value.items()}
    elif hint is float and type(value) is int and abs(value) < _EXACT_IN_FLOAT:
        return float(value)
    # From Python 3.14 on, every union has the name "Union".
    is_union = origin in (typing.Union, types.UnionType)
    expected = " or ".join(_name(c) for c in arguments) if is_union else _name(hint)
    # Not repr: a deeply nested value would exceed its recursion limit.
    got = f"{type(value).__name__} {reprlib.repr(value)}"
    raise DecodeError(f"{where}: expected {expected}, got {got}")
