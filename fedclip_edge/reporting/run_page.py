"""The page of one run, of a fleet or of the demo: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedclip_edge.reporting.chart import NARROW_PX, WIDE_PX, Chart, Line, chart_layout
from fedclip_edge.reporting.figures import number
from fedclip_edge.reporting.page import templates, write_page
from fedclip_edge.reporting.run_figures import (
    KINDS,
    UNKNOWN,
    Summary,
    apart,
    column_mean,
    is_demo,
    kinds,
    mean,
    pairs,
    worst_first,
)
from fedclip_edge.reporting.run_words import conclusion, names_of, progress, remarks

TEMPLATE = Path(__file__).resolve().with_name("run_page.html.j2")
_MEANS = (*KINDS, UNKNOWN, "federated_f1", "zero_shot_ece", "federated_ece")
# With more devices than this, a chart with a line for each cannot be read.
_LINES_MAX = 12
_WORST = 5


def write_run_page(path: Path, summary: Summary, examples: Mapping[str, Any] | None = None) -> None:
    """Write the page under a temporary name, then rename it.

    `summary` is described in run_figures.py. `examples` are the demo's pictures: values of the
    template's section for them. Raises OSError if the file cannot be written.
    """
    write_page(path, TEMPLATE, _values(summary, examples))


def run_page(summary: Summary) -> str:
    """Return the page of a run of a fleet as text."""
    return templates().get_template(TEMPLATE.name).render(**_values(summary))


def run_charts(summary: Summary) -> list[tuple[str, Chart]]:
    """Return the charts of accuracy by round, as (class of the drawing, chart), for two widths."""
    return _charts(_device_lines(_sorted(summary), names_of(summary)))


def _sorted(summary: Summary) -> Summary:
    """Put the worst device first, if there are too many for a line each."""
    if len(summary["devices"]) > _LINES_MAX:
        return {**summary, "devices": worst_first(summary["devices"])}
    return summary


def _values(summary: Summary, examples: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the values of the template."""
    summary = _sorted(summary)
    names = names_of(summary)
    return {
        "summary": summary,
        "demo": is_demo(summary),
        "apart": apart(summary),
        "names": names,
        "each_has_a_line": len(summary["devices"]) <= _LINES_MAX,
        "conclusion": conclusion(summary),
        "remarks": remarks(summary),
        "progress": progress(summary),
        "columns": kinds(summary),
        "means": {kind: column_mean(summary, kind) for kind in _MEANS},
        "held_out_charts": _charts(_held_out_lines(summary)),
        "charts": _charts(_device_lines(summary, names)),
        "cards": {},
        "kinds": (),
        "unreadable": (),
        **(examples or {}),
    }


def _device_lines(summary: Summary, names: Mapping[str, str]) -> list[Line]:
    """Return a line for each device; of many devices, their mean and the first of them.

    The demo's held-out style is not among them: it has a chart of its own.
    """
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
    others = {} if is_demo(summary) else apart(summary)
    if len(others) > _LINES_MAX:
        others = dict(list(worst_first(others).items())[:_WORST])
    for device, entry in others.items():
        zero_shot = entry["accuracy"].get("zero_shot")
        lines.append(Line(names[device], entry["accuracy_by_round"], zero_shot, "held-out"))
    return lines


def _held_out_lines(summary: Summary) -> list[Line]:
    """List the lines of the held-out style: the fleet, FedCLIP as published and zero-shot CLIP."""
    if not (held_out := summary.get("held_out")):
        return []
    own_style = len(summary["devices"])  # the first that no device has
    lines = [
        Line(f"the fleet, {summary['method']}", held_out["accuracy_by_round"], None, "held-out")
    ]
    if by_round := held_out.get("fedclip_by_round"):
        lines.append(Line("FedCLIP as published", by_round, None, own_style))
    zero_shot = held_out["accuracy"].get("zero_shot")
    return [*lines, Line("zero-shot", [zero_shot], None, "zero-shot")]


def _charts(lines: Sequence[Line]) -> list[tuple[str, Chart]]:
    return [
        ("wide", chart_layout(lines, *WIDE_PX, name_columns=20)),
        ("narrow", chart_layout(lines, *NARROW_PX, name_columns=0)),
    ]


def _at(entry: Mapping[str, Any], round: int) -> float | None:
    by_round = entry["accuracy_by_round"]
    return number(by_round[round]) if round < len(by_round) else None
