"""Log lines as `time event key=value`, or as one JSON object per line for machines.

The package has one logger of the standard library's `logging`. Its handler writes to standard
output, and nothing reaches the root logger.

Laws:
- An event is always one line. No field can cause an error, even if its text comes from a peer or is
  a file name.
- A full disk loses lines, and does not end the program.
"""

from __future__ import annotations

import errno
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, TextIO

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def use_json(enabled: bool) -> None:
    """Choose JSON or plain text for every later line of this process."""
    _OUTPUT.setFormatter(_Json() if enabled else _Plain())


def mute() -> None:
    """Stop writing events in this process, for a simulation that prints its own figures."""
    _LOGGER.disabled = True


def redirect(receiver: Callable[[str, Mapping[str, Any]], object]) -> None:
    """Give every later event of this process to `receiver`, and write none.

    It is for a child process whose parent writes the lines of both, so that they stay in order.
    """
    _LOGGER.handlers = [_Observer(receiver)]


def event(name: str, /, **fields: object) -> None:
    """Write one line to standard output and flush it: a supervisor may be reading.

    Fields that are None are left out. Errors of the stream pass through, such as BrokenPipeError,
    but not that of a full disk.
    """
    _LOGGER.info(name, extra={"fields": fields})


def forward(name: str, fields: Mapping[str, object]) -> None:
    """Write an event that a child process gave to its `redirect`, as `event` does."""
    _LOGGER.info(name, extra={"fields": fields})


def write(stream: TextIO, name: str, fields: Mapping[str, object]) -> None:
    """Write one line to `stream` and flush it; fields that are None are left out."""
    record = _LOGGER.makeRecord(
        _LOGGER.name, logging.INFO, "", 0, name, (), None, extra={"fields": fields}
    )
    _put(stream, _OUTPUT.format(record))


@contextmanager
def observed(observer: Callable[[str, Mapping[str, Any]], object]) -> Iterator[None]:
    """Call `observer` with the name and the fields of each event, until the end of the block.

    Fields that are None are left out. The call is made in the thread that writes the event, one at
    a time, after the line is written.
    """
    handler = _Observer(observer)
    _LOGGER.addHandler(handler)
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the line for a person."""
        shown = (f"{key}={_text(value)}" for key, value in _fields(record).items())
        return " ".join([_time(record), record.getMessage(), *shown])


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the line for a machine; a field cannot replace the keys `time` and `event`."""
        ours = {"time": _time(record), "event": record.getMessage()}
        return json.dumps({"time": "", **_fields(record), **ours}, default=str)


class _Output(logging.Handler):
    """Handler that looks up sys.stdout for each line, because a test may replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line; a closed pipe ends this process, and a full disk does not."""
        try:
            _put(sys.stdout, self.format(record))
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise


class _Observer(logging.Handler):
    """Handler that passes events on as they are, for a part of the program that counts them."""

    def __init__(self, observer: Callable[[str, Mapping[str, Any]], object]) -> None:
        super().__init__()
        self._observer = observer

    def emit(self, record: logging.LogRecord) -> None:
        """Pass the event on; errors of the observer pass through."""
        self._observer(record.getMessage(), _fields(record))


def _put(stream: TextIO, line: str) -> None:
    encoding = stream.encoding or "utf-8"
    stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def _time(record: logging.LogRecord) -> str:
    """Return the time in ISO 8601, with date, milliseconds and the offset from UTC."""
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
