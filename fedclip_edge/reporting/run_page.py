"""The page of one run, of a fleet or of the demo: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedclip_edge.reporting.chart import NARROW_PX, WIDE_PX, Line, chart_layout
from fedclip_edge.reporting.figures import number
from fedclip_edge.reporting.page import write_page
from fedclip_edge.reporting.run_figures import Summary, apart, is_demo, mean, pairs, worst_first
from fedclip_edge.reporting.run_words import conclusion, names_of, remarks

TEMPLATE = Path(__file__).resolve().with_name("run_page.html.j2")
_MEANS = ("zero_shot", "local", "federated", "federated_f1", "zero_shot_ece", "federated_ece")
# With more devices than this, a chart with a line for each cannot be read.
_LINES_MAX = 12
_WORST = 5


def write_run_page(path: Path, summary: Summary, examples: Mapping[str, Any] | None = None) -> None:
    """Write the page under a temporary name, then rename it.

    `summary` is described in run_figures.py. `examples` are the demo's pictures: values of the
    template's section for them. Raises OSError if the file cannot be written.
    """
    if len(summary["devices"]) > _LINES_MAX:
        summary = {**summary, "devices": worst_first(summary["devices"])}
    names = names_of(summary)
    lines = _lines(summary, names)
    values = {
        "summary": summary,
        "demo": is_demo(summary),
        "apart": apart(summary),
        "names": names,
        "each_has_a_line": len(summary["devices"]) <= _LINES_MAX,
        "conclusion": conclusion(summary),
        "remarks": remarks(summary),
        "means": {kind: _column_mean(summary, kind) for kind in _MEANS},
        "charts": [
            ("wide", chart_layout(lines, *WIDE_PX, name_columns=18)),
            ("narrow", chart_layout(lines, *NARROW_PX, name_columns=0)),
        ],
        "cards": {},
        "kinds": (),
        "unreadable": (),
        **(examples or {}),
    }
    write_page(path, TEMPLATE, values)


def _column_mean(summary: Summary, kind: str) -> float | None:
    """Compute the mean of one kind of accuracy over all devices; None if a device has none."""
    found = pairs(summary["devices"], kind, kind)
    return mean([a for a, _ in found]) if len(found) == len(summary["devices"]) else None


def _lines(summary: Summary, names: Mapping[str, str]) -> list[Line]:
    """Return a line for each device; of many devices, their mean and the first of them."""
    devices = summary["devices"]
    shown = list(devices)
    lines = []
    if len(devices) > _LINES_MAX:
        rounds = range(summary["rounds_closed"] + 1)
        by_round = [
            mean([v for entry in devices.values() if (v := _at(entry, n)) is not None])
            for n in rounds
        ]
        before = mean([a for a, _ in pairs(devices, "zero_shot", "zero_shot")])
        lines.append(Line(f"mean of {len(devices)}", by_round, before, _WORST))
        measured = [d for d, entry in devices.items() if "federated" in entry["accuracy"]]
        shown = measured[:_WORST]
    lines += [
        Line(
            names[device],
            devices[device]["accuracy_by_round"],
            devices[device]["accuracy"].get("zero_shot"),
            style,
        )
        for style, device in enumerate(shown)
    ]
    others = apart(summary)
    if len(others) > _LINES_MAX:
        others = dict(list(worst_first(others).items())[:_WORST])
    for device, entry in others.items():
        name = entry["domain"] if is_demo(summary) else names[device]
        zero_shot = entry["accuracy"].get("zero_shot")
        lines.append(Line(name, entry["accuracy_by_round"], zero_shot, "held-out"))
    return lines


def _at(entry: Mapping[str, Any], round: int) -> float | None:
    by_round = entry["accuracy_by_round"]
    return number(by_round[round]) if round < len(by_round) else None
