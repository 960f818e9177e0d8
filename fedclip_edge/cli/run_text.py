"""The texts of `runs` and `run show`, from the JSON objects of `coordinator/run_report.py`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from fedclip_edge.cli.device_tables import facts_text, gain_text, percent_text
from fedclip_edge.reporting import run_table
from fedclip_edge.reporting.figures import duration, kilobytes, norm
from fedclip_edge.reporting.run_figures import worst_first
from fedclip_edge.reporting.run_words import conclusion
from fedclip_edge.reporting.table import aligned, width_of

NOT_SERVED = "no coordinator serves from this journal now; no run goes on"
_DEVICES = 20  # that are shown without --all


def runs_table(rows: Sequence[Mapping[str, Any]], stream: TextIO) -> str:
    """Format runs (`coordinator/run_report.py: brief`) as a table."""
    head: tuple[str, ...] = ("run", "state", "started", "took", "method", "rounds", "devices")
    head += ("zero-shot", "shared", "gain", "updates")
    units = ("", "", "", "", "", "closed", "", "%", "%", "points", "kB")
    cells = [
        (
            row["run"],
            row["state"],
            _date(row["started_at"]),
            "-" if row["seconds"] is None else duration(row["seconds"]),
            row["method"],
            f"{row['rounds_closed']}/{row['rounds']}",
            str(row["devices"]),
            percent_text(row["accuracy"].get("zero_shot")),
            percent_text(row["accuracy"].get("federated")),
            gain_text(row["accuracy"]),
            kilobytes(row["updates_bytes"]),
        )
        for row in rows
    ]
    return aligned(
        [head, units, *cells],
        width=width_of(stream),
        align="lllrl" + "r" * 6,
        gap="  ",
        parts=[range(1, 7), range(7, 11)],
    )


def summary_text(summary: Mapping[str, Any], stream: TextIO, *, every: bool = False) -> str:
    """Format the summary of a run (`coordinator/run_report.py`), the worst devices first."""
    width = width_of(stream)
    ranked = list(worst_first(summary["devices"]).items())
    shown = ranked if every else ranked[:_DEVICES]
    lines = [
        run_table.filled(conclusion(summary), width),
        "",
        facts_text(
            [
                ("run", f"{summary['run']} of the fleet {summary['fleet']}: {summary['state']}"),
                ("method", summary["method"]),
                *([("vote", summary["decision"]["said"])] if summary["decision"] else []),
            ],
            width,
        ),
        "",
        run_table.table({**summary, "devices": dict(shown)}, width),
    ]
    if len(ranked) > len(shown):
        lines.append(f"and {len(ranked) - len(shown)} more; --all shows every device")
    lines += ["", _contributions(dict(shown), summary["rounds_closed"], width)]
    lines += ["", run_table.notes(summary, width)]
    return "\n".join(lines)


def _contributions(devices: Mapping[str, Any], closed: int, width: int | None) -> str:
    head = ("device", "contributions", "median norm", "largest norm", "updates, kB")
    rows = [
        (
            device,
            f"{entry['contributions']}/{closed}",
            norm(entry["norm"]),
            norm(entry["norm_largest"]),
            kilobytes(entry["updates_bytes"]),
        )
        for device, entry in devices.items()
    ]
    return aligned([head, *rows], width=width, gap="  ")


def _date(at: float | None) -> str:
    return "-" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
