"""The table of one run's figures by device, for a terminal or a pipe."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from fedclip_edge.reporting.figures import difference
from fedclip_edge.reporting.run_figures import (
    KINDS,
    UNKNOWN,
    Summary,
    apart,
    has_unknown,
    is_demo,
    kinds,
)
from fedclip_edge.reporting.run_words import counted
from fedclip_edge.reporting.table import aligned

_NOTE_COLUMNS = 100


def table(summary: Summary, columns: int | None = None) -> str:
    """Format the table; if it needs more than `columns`, accuracy and cost are separate."""
    shown_kinds = kinds(summary)
    more = (UNKNOWN,) * has_unknown(summary)
    rows = [_row(name, figures, shown_kinds, more) for name, figures in summary["devices"].items()]
    for name, figures in apart(summary).items():
        shown = f"{figures['domain']} (held out)" if is_demo(summary) else f"{name} (evaluates)"
        rows.append(_row(shown, figures, shown_kinds, more))
    head = [
        "device",
        "train+test",
        "encoded",
        *(KINDS[kind] for kind in shown_kinds),
        "gain",
        *more,
    ]
    head += ["up", "down", "encode", "train", "wait"]
    units = [
        "",
        "pictures",
        "this run",
        *("%" for _ in shown_kinds),
        "points",
        *("%" for _ in more),
    ]
    units += ["kB/round", "kB/round", "s", "s", "s"]
    costs = 4 + len(shown_kinds) + len(more)
    parts = ([1, *range(3, costs)], [2, *range(costs, len(head))])
    return aligned([head, units, *rows], width=columns, parts=parts)


def notes(summary: Summary, columns: int | None = None) -> str:
    """Explain the headings of the table, in lines of at most `columns`, or 100."""
    shown = kinds(summary)
    compared, personal = "", ""
    if "fedclip" in shown:
        compared = (
            "FedCLIP: FedCLIP as published, trained by the same devices, "
            f"{counted(summary['fedclip_rounds'])}; local: trained on one device alone (held out: "
            "the mean of these models); "
        )
    elif "local" in shown:
        compared = "local: trained on this device alone; "
    if "personal" in shown:
        personal = "personal: the device's own model, made from the shared one; "
    unknown = (
        "unknown: test pictures that the federated model calls none of the classes, although each "
        "is of one. "
    ) * has_unknown(summary)
    last = (
        "held out: no device trains on these pictures. "
        if is_demo(summary)
        else "evaluates: the device only evaluates. " * bool(apart(summary))
    )
    text = (
        "train+test: training and test pictures; the rest are for validation. Accuracy is on test "
        f"pictures. zero-shot: CLIP without training; {compared}federated: the fleet's shared "
        f"model, trained with {summary['method']}; {personal}gain: "
        f"{'personal' if personal else 'federated'} minus zero-shot, in percentage points. "
        f"{unknown}{last}encoded: pictures that went through the encoder in this run; the features of the "
        "others were in the cache. up, down: bytes sent and received. encode, train, wait: seconds "
        "in the whole run."
    )
    return filled(text, columns)


def filled(text: str, columns: int | None = None) -> str:
    """Wrap a text into lines of at most `columns`, or 100; a % sign stays with its number."""
    joined = text.replace(" %", "\N{NO-BREAK SPACE}%")
    lines = textwrap.fill(joined, min(columns or _NOTE_COLUMNS, _NOTE_COLUMNS))
    return lines.replace("\N{NO-BREAK SPACE}%", " %")


def _row(
    name: str, figures: Mapping[str, Any], kinds: Sequence[str], more: Sequence[str]
) -> tuple[str, ...]:
    """Format a row; the gain is the personal model's if there is one, else the shared model's."""
    accuracy, pictures, seconds = figures["accuracy"], figures["pictures"], figures["seconds"]
    best = "personal" if "personal" in accuracy else "federated"
    gain = difference(accuracy, best, "zero_shot")
    return (
        name,
        f"{pictures['train']}+{pictures['test']}" if pictures else "-",
        "-" if figures["encoded"] is None else str(figures["encoded"]),
        *(_percent(accuracy.get(kind)) for kind in kinds),
        "-" if gain is None else f"{100 * gain:+.1f}",
        *(_percent(accuracy.get(kind)) for kind in more),
        _kilobytes(figures["bytes_up_per_round"]),
        _kilobytes(figures["bytes_down_per_round"]),
        *(_seconds(seconds[name]) for name in ("encode", "train", "wait")),
    )


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _kilobytes(count: int | None) -> str:
    return "n/a" if count is None else f"{count / 1000:.1f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
