"""Log lines as `event key=value`, or as one JSON object a line for machines.

Law: an event is one line and stops nothing, whatever a peer or a file's name put into its fields.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import TextIO

_format = {"json": False, "muted": False}


def use_json(enabled: bool) -> None:
    """Chooses the form of every later line of this process."""
    _format["json"] = enabled


def mute() -> None:
    """No event of this process is written any more: a simulation has its own figures to show."""
    _format["muted"] = True


def event(name: str, /, **fields: object) -> None:
    """One line on standard output, flushed: a supervisor may be reading along."""
    if not _format["muted"]:
        write(sys.stdout, name, fields)


def write(stream: TextIO, name: str, fields: Mapping[str, object]) -> None:
    """One line on `stream`; None fields are left out."""
    shown = {key: value for key, value in fields.items() if value is not None}
    if _format["json"]:
        line = json.dumps({**shown, "event": name}, default=str)
    else:
        clock = time.strftime("%H:%M:%S")
        line = " ".join([clock, name, *(f"{key}={_text(value)}" for key, value in shown.items())])
    encoding = stream.encoding or "utf-8"
    stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def _text(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    if text.isprintable():
        return json.dumps(text, ensure_ascii=False) if not text or set(text) & set(' ="') else text
    return json.dumps(text)  # a line break, an escape sequence, a lone surrogate
