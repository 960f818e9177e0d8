"""Reading of settings that a person wrote.

Law: a relative path is relative to the folder of the file that contains it, whatever the working
directory.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fedclip_edge.decoding import DecodeError, decode_table
from fedclip_edge.errors import ConfigError
from fedclip_edge.storage.toml_file import read_toml

T = TypeVar("T")


def load(cls: type[T], path: Path) -> T:
    """Read a TOML file; raise ConfigError with the file, the key and what to write instead."""
    return read_table(cls, read_toml(path), str(path), path.resolve().parent)


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


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition is true."""
    if not condition:
        raise ValueError(message)
