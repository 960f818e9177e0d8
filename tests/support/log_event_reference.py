"""docs/reference/log-events.md: every log event, its fields and its meaning."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import log_scan
import reference_markdown as md
from log_event_meanings import BOTH, EVENTS, FIELDS, PROGRAMS

from fedclip_edge import log

# From a run of one device with `local_baseline = true`; the times are made equal.
EXAMPLES: tuple[tuple[str, str, Mapping[str, object]], ...] = (
    (
        "Agent",
        "features_ready",
        {
            "train": 107,
            "test": 48,
            "encoded": 200,
            "cached": 0,
            "damaged": None,
            "skipped": 0,
            "unlabelled": None,
            "seconds": 0.27259,
            "provider": "cpu",
        },
    ),
    ("Agent", "no_answer", {"fleet": "lab", "hint": "does its serve run?"}),
    ("Agent", "trained", {"round": 1, "update_bytes": 21633}),
    (
        "Coordinator",
        "joined",
        {"device": "cam-01", "domain": "loading dock", "roles": "train+evaluate"},
    ),
    (
        "Coordinator",
        "round_closed",
        {
            "round": 1,
            "rounds": 2,
            "contributions": 1,
            "cohort": 1,
            "updates_bytes": 21633,
            "model_bytes": 59602,
            "seconds": 0.969,
        },
    ),
)
_AT = 1_780_000_000.123  # the time of the examples, in UTC

_FORMAT = """\
`fedclip-edge agent` and `fedclip-edge serve` write one line for each event to standard output:
the time with its offset from UTC, the name of the event, and fields as `key=value`. A value with a
space, a quote or an equals sign is in double quotes, as a JSON string. Numbers have four
significant digits. A field without a value is left out."""

_JSON = """\
With `--json` each line is one JSON object, with full precision. `time` is the first key and `event`
the last. `serve --json` also starts the device of `[trainer]` with `--json`; both write to the same
output."""

_OTHERS = """\
- A fatal error is not an event. It is one message on standard error, followed by an
  [exit code](exit-codes.md).
- `demo` starts a coordinator and devices with `--json`, and prints lines of its own. The events of
  each device are in `OUT/logs/DEVICE.log`; those of the coordinator are not kept.
- `broker start` writes no events. `simulate` turns them off."""


def program_of(module: str) -> str:
    """The program that writes the events of a module; KeyError for a module that is new."""
    (program,) = {p for start, p in PROGRAMS.items() if module.startswith(start)} or {""}
    if not program:
        raise KeyError(f"{module} writes events: name its program in log_event_meanings.py")
    return program


def found() -> dict[tuple[str, str], dict[str, bool]]:
    """By program and event: its fields, and whether every place that writes it gives the field."""
    events: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for site in log_scan.sites():
        events.setdefault((program_of(site.module), site.event), []).append(site.fields)
    return {
        key: {name: all(name in one for one in places) for place in places for name in place}
        for key, places in events.items()
    }


def meaning_of(event: str, field: str) -> str:
    """The key of `FIELDS` for a field of an event."""
    own = f"{event}.{field}"
    return own if own in FIELDS else field


def page() -> str:
    parts = [
        "# Log events",
        md.notice("the calls in the source that write the events"),
        _FORMAT,
        md.fenced("\n".join(example_lines(as_json=False)), "text"),
        _JSON,
        md.fenced("\n".join(example_lines(as_json=True)), "json"),
        _OTHERS,
    ]
    events = found()
    for program, entries in EVENTS.items():
        parts.append(f"## {program}")
        if program == BOTH:
            parts.append(
                "The events of methods and strategies are written where a model is made: by the "
                "coordinator, and by an agent for the local baseline and for personal models."
            )
        rows = [
            (
                f"`{name}`",
                _fields(events[program, name]),
                md.prose(f"{entry.meaning} {entry.action}".strip()),
            )
            for name, entry in entries.items()
        ]
        parts.append(md.table(("event", "fields", "meaning, and what to do"), rows))
    parts += ["## Fields", md.table(("field", "meaning"), _field_rows())]
    return md.page(parts)


def example_lines(*, as_json: bool) -> Iterator[str]:
    """The examples as the package's own formatters write them, in UTC."""
    formatter = log._Json() if as_json else log._Plain()
    with _utc():
        for _program, event, fields in EXAMPLES:
            record = logging.LogRecord("", logging.INFO, "", 0, event, (), None)
            record.created = _AT
            record.fields = fields
            yield formatter.format(record)


def _fields(fields: Mapping[str, bool]) -> str:
    return ", ".join(
        _shown(name) + ("" if always else " (optional)") for name, always in fields.items()
    )


def _shown(field: str) -> str:
    return "*accuracies*" if field.startswith("**") else f"`{field}`"


def _field_rows() -> Iterator[tuple[str, str]]:
    for name, meaning in sorted(FIELDS.items(), key=lambda item: item[0].rpartition(".")[2]):
        event, _, field = name.rpartition(".")
        if name.startswith("**"):
            yield "*accuracies*", md.prose(meaning)
        else:
            yield f"`{field}`" + (f" of `{event}`" if event else ""), md.prose(meaning)


@contextmanager
def _utc() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()
