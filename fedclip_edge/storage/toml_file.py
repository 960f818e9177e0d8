"""TOML files, with errors that name the line and the usual mistake in it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedclip_edge.errors import ConfigError
from fedclip_edge.storage.text_file import SECRET, at_line, read_text, strange_character

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_WORDS = {
    "true": "true",
    "yes": "true",
    "on": "true",
    "false": "false",
    "no": "false",
    "off": "false",
}
_LIST = "a list needs commas between its entries, and a ] at its end"
_NOT_CLOSED = "the ] of a list is missing above"
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_KEY = re.compile(r"\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*[\w-]+)*)\s*=")
_HEADER = re.compile(r"\s*\[([\w\s.-]+)\]\s*(?:#.*)?$")
_STRING = re.compile(r"(\s*([\w-]+)\s*=\s*)(?:\"(?:[^\"\\]|\\.)*\"|'[^']*')(\s*(?:#.*)?)$")
_LONG = re.compile(r"\"\"\"|'''")  # begins or ends a string of several lines
_BACKSLASH = re.compile(r"=.*\"[^\"]*\\")  # a backslash inside double quotes


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises ConfigError if it is missing, unreadable or not TOML; the message then names the line
    and what is usual in its place.
    """
    try:
        return parse_toml(read_text(path), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; create it or name another file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def replace_strings(text: str, values: Mapping[tuple[str, ...], str]) -> str:
    """Return the TOML `text` with new strings for some keys, which are named with their tables.

    Only keys with a string on a line of their own are replaced; comments stay. The caller checks
    the result: a key in another form is left as it is.
    """
    lines, table = text.split("\n"), tuple[str, ...]()
    for place, line in enumerate(lines):
        header = _HEADER.match(line)
        if header is not None:
            table = tuple(part.strip() for part in header[1].split("."))
            continue
        found = _STRING.match(line)
        if found is not None and (*table, found[2]) in values:
            value = json.dumps(values[(*table, found[2])], ensure_ascii=False)
            lines[place] = f"{found[1]}{value}{found[3]}"
    return "\n".join(lines)


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Parse `text`; raises ConfigError as `read_toml` does."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = _explain(text.split("\n"), str(error), where)
    except RecursionError:
        message = f"{where} is not valid TOML: its lists or tables are nested too deeply"
    except ValueError:  # Python limits the number of digits
        message = f"{where} is not valid TOML: it contains a number with thousands of digits"
    raise ConfigError(message) from None


def parse_value(text: str) -> str | int | float | bool:
    """Parse `text` as a TOML scalar (3, 0.5, true); return it unchanged if it is not one."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # TOMLDecodeError is a ValueError
        return text
    return value if isinstance(value, str | int | float | bool) else text


def _explain(lines: Sequence[str], said: str, where: str) -> str:
    place = _PLACE.search(said)
    problem = said[: place.start()] if place else said
    filled = [i for i, line in enumerate(lines) if line.strip()]
    number, column = (filled[-1] + 1 if filled else 1), 0  # at the end: the last line with text
    if place and place[1]:
        number, column = int(place[1]), int(place[2])
    # The parser finds only on a later line that a list or a table was not closed.
    while number > 1 and problem.startswith("Unclosed") and not lines[number - 1][: column - 1]:
        number, column = number - 1, 10_000
    if not column:  # a string of several lines may begin far above
        number = next((i for i in filled[::-1] if _LONG.search(lines[i])), number - 1) + 1
    line = lines[number - 1]
    hint = _hint(lines, number, column, problem)
    return f"{at_line(where, number, line)} is not valid TOML: {hint}"


def _hint(lines: Sequence[str], number: int, column: int, problem: str) -> str:
    """The usual text in the place of the mistake that the parser calls `problem`."""
    line = lines[number - 1]
    key, _, value = line.partition("=")
    key, value = key.strip(), value.strip()
    rest = line[column - 1 :].strip() if column else ""
    if hint := strange_character(line, column):
        return hint
    if SECRET.search(f"{key} = x") and value[:1] not in ("", '"', "'") and "{" not in line:
        return f'text needs quotes: {key} = "..."'
    if problem.startswith(("Cannot declare", "Cannot overwrite", "Cannot mutate")):
        return _twice(lines, number)
    if problem.startswith(("Unescaped", "Invalid hex", "Escaped character")) or (
        problem.startswith("Illegal character") and _BACKSLASH.match(line)
    ):
        return r"in double quotes, \ begins an escape; write a path with /, or in '...'"
    if problem == "Unterminated string" or "\\n" in problem or problem.startswith('Expected "'):
        return "a closing quote is missing"
    if problem.startswith("Unclosed array"):
        return _LIST
    if problem.startswith("Unclosed inline table"):
        return "a table in { } must be on one line, with commas between its entries"
    if line.lstrip().startswith(("//", ";", "/*", "--")):
        return "a comment begins with #"
    if line.lstrip().startswith("["):
        if problem == "Invalid value":  # the line is read as an entry of a list
            return _NOT_CLOSED
        return "write the name of a table in [ ], on a line of its own: [broker]"
    if problem.startswith("Expected '='"):
        if rest.startswith(":"):
            return "write = instead of :"
        if "=" in line:
            return "a key has no spaces; write KEY = VALUE"
        return "= is missing; write KEY = VALUE"
    if problem == "Invalid value":
        if 0 < column <= line.find("="):  # the key is read as an entry of a list
            return _NOT_CLOSED
        if value.startswith("["):
            return _entry_hint(rest)
        if value.startswith("{"):
            return "put each text in { } in quotes"
        return _value_hint(key, value)
    if problem.startswith("Expected newline"):
        return _after_value(key, value, rest)
    return f"write KEY = VALUE, or [TABLE] ({problem})"


def _value_hint(key: str, value: str) -> str:
    word = value.partition("#")[0].strip()
    if not word:
        return f"a value is missing after {key} ="
    if word.lower() in _WORDS:
        return f"write {_WORDS[word.lower()]} instead of {word}"
    if word.lower() in ("none", "null", "nil"):
        return f"TOML has no {word}; leave the line out"
    if word.startswith("="):
        return "write one ="
    if re.match(r"[+-]?\.\d", word):
        return "a number needs a digit before its dot, as in 0.5"
    return f"text needs quotes: {_as_text(key, word)}"


def _entry_hint(rest: str) -> str:
    """A hint about the entry of a list with which `rest` begins."""
    word = re.split(r"[],#]", rest, maxsplit=1)[0].strip()
    if word.lower() in _WORDS:
        return f"write {_WORDS[word.lower()]} instead of {word}"
    return f'put each text of a list in quotes: ["{word}"]' if word[:1].isalpha() else _LIST


def _after_value(key: str, value: str, rest: str) -> str:
    """A hint about `rest`, which follows a complete value in the same line."""
    word = value.partition("#")[0].strip()
    if re.fullmatch(r"[+-]?\d[\d.]*,\d+", word):
        number = word.replace(".", "").replace(",", ".")
        return f"write a dot instead of the comma: {number}"
    if re.fullmatch(r"[+-]?0\d+", word):
        return f"a number must not begin with 0; write {word.lstrip('+-0') or '0'}"
    if re.fullmatch(r"[+-]?\d+\.", word):
        return f"a number needs a digit after its dot; write {word}0"
    if re.fullmatch(r"[+-]?\d[\d.]*\s*[A-Za-z%]+", word):
        return "write the number without a unit, or text in quotes"
    if re.fullmatch(r"[+-]?\d\S*", word) and not word.endswith((";", ",")):
        return f"text needs quotes: {_as_text(key, word)}"
    if "=" in rest:
        return "write each KEY = VALUE on a line of its own"
    if rest.startswith(",") and rest[1:].strip():
        return f"a list needs [ ] around it: {key} = [...]"
    if rest.startswith((";", ",")):
        return f"remove {rest[0]} after the value"
    return "there is text after the value; close the quotes at its end, or put # before a comment"


def _as_text(key: str, word: str) -> str:
    quote = "'" if "\\" in word or '"' in word else '"'
    inner = "..." if SECRET.search(f"{key} = {word}") else word.strip("\"'")
    return f"{key} = {quote}{inner}{quote}"


def _twice(lines: Sequence[str], number: int) -> str:
    """A hint about a key or a table that is given twice, the second time in line `number`."""
    line, above = lines[number - 1].strip(), lines[: number - 1]
    if line.startswith("["):
        name = line.partition("#")[0].strip()
        first = [i for i, one in enumerate(above, 1) if one.partition("#")[0].strip() == name]
        if first:
            return f"the table {name} is already in line {first[0]}; put its keys together"
        return f"{name} is already given above; write it once"
    found = _KEY.match(line)
    if found is None:
        return "a key or a table is given twice; keep one"
    for i in range(number - 2, -1, -1):
        if lines[i].lstrip().startswith("["):
            break
        earlier = _KEY.match(lines[i])
        if earlier and earlier[1] == found[1]:
            return f"the key {found[1]!r} is already in line {i + 1}; keep one"
    return f"the key {found[1]!r} is given twice; keep one"
