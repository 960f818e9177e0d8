"""Log lines as `time event key=value`, or as one JSON object a line for machines.

The standard library's logging is beneath, with one logger of the package's own: its handler writes to
standard output, and nothing reaches the root logger.

Law: an event is one line and stops nothing, whatever a peer or a file's name put into its fields.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, TextIO


def use_json(enabled: bool) -> None:
    """Chooses the form of every later line of this process."""
    _OUTPUT.setFormatter(_Json() if enabled else _Plain())


def mute() -> None:
    """No event of this process is written any more: a simulation has its own figures to show."""
    _LOGGER.disabled = True


def event(name: str, /, **fields: object) -> None:
    """One line on standard output, flushed: a supervisor may be reading along."""
    _LOGGER.info(name, extra={"fields": fields})


def write(stream: TextIO, name: str, fields: Mapping[str, object]) -> None:
    """One line on `stream`; None fields are left out."""
    record = _LOGGER.makeRecord(
        _LOGGER.name, logging.INFO, "", 0, name, (), None, extra={"fields": fields}
    )
    _put(stream, _OUTPUT.format(record))


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """The line for a person."""
        shown = (f"{key}={_text(value)}" for key, value in _fields(record).items())
        return " ".join([_time(record), record.getMessage(), *shown])


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """The line for a machine; `time` and `event` are ours, whatever the fields are called."""
        ours = {"time": _time(record), "event": record.getMessage()}
        return json.dumps({"time": "", **_fields(record), **ours}, default=str)


class _Output(logging.Handler):
    """Writes to what is standard output at that moment: a test may put another in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Raises what the stream raises: a reader that has gone ends this process."""
        _put(sys.stdout, self.format(record))


def _put(stream: TextIO, line: str) -> None:
    encoding = stream.encoding or "utf-8"
    stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def _time(record: logging.LogRecord) -> str:
    """ISO 8601 with the date, milliseconds and the offset from UTC."""
    moment = datetime.fromtimestamp(record.created, tz=timezone.utc)
    return moment.astimezone().isoformat(timespec="milliseconds")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: Mapping[str, Any] = vars(record)["fields"]
    return {key: value for key, value in fields.items() if value is not None}


def _text(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    if text.isprintable():
        return json.dumps(text, ensure_ascii=False) if not text or set(text) & set(' ="') else text
    return json.dumps(text)  # a line break, an escape sequence, a lone surrogate


_OUTPUT = _Output()
_OUTPUT.setFormatter(_Plain())
_LOGGER = logging.getLogger("fedclip_edge")
_LOGGER.setLevel(logging.INFO)
_LOGGER.propagate = False
_LOGGER.addHandler(_OUTPUT)
