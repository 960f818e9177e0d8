"""Text files that a person may have written or edited, with any usual encoding, and JSON files.

Editors and shells on Windows put a mark (BOM) before UTF-8, or write UTF-16. Both are read.

Laws:

- Every file that a person may write is read here (TOML files by toml_file.py, which uses this).
- An error names the file, the line and what to do. It does not quote a password.
"""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from fedclip_edge.errors import ConfigError

# The mark at the start of a file, and its encoding. UTF-32's begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SHOWN = 80  # characters of a line that a message quotes
SECRET = re.compile(r"((?:pass|pwd|secret|token)\w*\W*).+", re.IGNORECASE)
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_CURLY = "“”„‟«»‘’‚‛"
_PYTHON = {"True": "true", "False": "false", "None": "null"}
# Categories of Unicode: controls, formats, half pairs and blanks (' ' and tab are among them).
INVISIBLE = ("Cc", "Cf", "Cs", "Zs", "Zl", "Zp")


def read_text(path: Path) -> str:
    """Text of the file `path`, whose lines end with a line feed.

    Raises OSError if it cannot be read, and ConfigError as `decode` does.
    """
    return decode(path.read_bytes(), str(path))


def decode(data: bytes, where: str) -> str:
    """Decode UTF-8, or UTF-16 or UTF-32 with a mark; the mark is removed.

    Raises ConfigError, which starts with `where` and names the line, for other bytes and for a NUL.
    """
    mark, encoding = next((one for one in _MARKS if data.startswith(one[0])), (b"", "utf-8"))
    body = data[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise ConfigError(
                f"{where} begins as {encoding[:6].upper()} text, but is incomplete or damaged; save "
                "it again as UTF-8"
            ) from None
        raise ConfigError(_not_utf8(body, error.start, len(mark), where)) from None
    if (at := text.find("\0")) >= 0:
        line = text.count("\n", 0, at) + 1
        raise ConfigError(
            f"{where}, line {line}: contains a NUL character, so it is not a text file, or is "
            "UTF-16 without a mark; save it as UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> Any:
    """Content of the JSON file `path`.

    Raises OSError if it cannot be read; ConfigError, naming the line, as `decode` does, if it is
    not JSON, if an object has a name twice, or if a text cannot be written as UTF-8.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, where: str) -> Any:
    """Parse `text` as `read_json` does."""
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, where))
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        lines = text.split("\n")
        line = lines[error.lineno - 1] if error.lineno <= len(lines) else ""
        problem = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        raise ConfigError(
            f"{at_line(where, error.lineno, line)} is not valid JSON: {problem}; "
            f"{_json_hint(text, line, error)}"
        ) from None
    except UnicodeEncodeError:
        raise ConfigError(
            f"{where} contains half of a character (an escape \\ud800 to \\udfff without its pair); "
            "write the character itself"
        ) from None
    except RecursionError:
        raise ConfigError(
            f"{where} is not valid JSON: its lists or objects are nested too deeply"
        ) from None
    except ValueError:  # Python limits the number of digits
        raise ConfigError(
            f"{where} is not valid JSON: it contains a number with thousands of digits"
        ) from None
    return value


def at_line(where: str, number: int, line: str) -> str:
    """Name a line of a file, and quote it without its password: `agent.toml, line 3 (id = a)`."""
    return f"{where}, line {number} ({_quoted(line) or 'empty'})"


def strange_character(line: str, column: int) -> str | None:
    """A hint about a curly quote or an invisible character in `column` or outside quotes, or None.

    The first column is 1. Inside quotes such a character is usually meant, as in "it’s".
    """
    shown = list(_QUOTED.sub(lambda found: "x" * len(found[0]), line))
    if 0 < column <= len(line):
        shown[column - 1] = line[column - 1]
    for place, c in enumerate(shown, 1):
        if c in _CURLY:
            return f"write straight quotes, \" or ', instead of {c}"
        if c not in " \t\n" and unicodedata.category(c) in INVISIBLE:
            return f"delete the invisible character {code_point(c)} at column {place}"
    return None


def code_point(c: str) -> str:
    """Number and name of a character, such as `U+200B ZERO WIDTH SPACE`."""
    return f"U+{ord(c):04X} {unicodedata.name(c, '')}".rstrip()


def _quoted(line: str) -> str:
    shown = SECRET.sub(r"\1...", line.strip())
    if len(shown) > _SHOWN:
        shown = shown[:_SHOWN] + " ..."
    return "".join(c if c.isprintable() else f"<U+{ord(c):04X}>" for c in shown)


def _not_utf8(body: bytes, at: int, skipped: int, where: str) -> str:
    line = body[body.rfind(b"\n", 0, at) + 1 :].partition(b"\n")[0]
    number = body.count(b"\n", 0, at) + 1
    return (
        f"{where}, line {number}: the byte 0x{body[at]:02x} at offset "
        f"{at + skipped} is not UTF-8. Read as Windows-1252, the line is: "
        f"{_quoted(line.decode('cp1252', 'replace'))}. Save the file as UTF-8"
    )


def _object(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{where}: the name {twice!r} occurs twice in one object; keep one")
    return table


def _json_hint(text: str, line: str, error: json.JSONDecodeError) -> str:
    before, rest = text[: error.pos].rstrip(), text[error.pos :].lstrip()
    if hint := strange_character(line, error.colno):
        return hint
    if not text.strip():
        return "the file is empty"
    if "escape" in error.msg:
        return r"write \\ for a backslash, or / in a path"
    if rest.startswith("'"):
        return "write \" instead of '"
    if rest.startswith(("#", "//", "/*")):
        return "remove the comment: JSON has none"
    for word, meant in _PYTHON.items():
        if rest.startswith(word):
            return f"write {meant} instead of {word}"
    if "trailing comma" in error.msg or (before.endswith(",") and rest[:1] in ("]", "}", "")):
        return "remove the comma after the last entry"
    if not rest:
        return "the file ends too early; is a bracket or a quote missing?"
    if "control character" in error.msg or "Unterminated" in error.msg:
        return "close the quotes in the same line"
    if "',' delimiter" in error.msg:
        return "is a comma missing before it, or a quote?"
    if "Expecting value" in error.msg:
        return 'text needs quotes: ["one", "another"]'
    if "property name" in error.msg:
        return "put the name in double quotes"
    return "correct the line"
