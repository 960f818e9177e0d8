"""The HTML report of a simulation: the means, accuracy by round and by bytes, and all figures.

Law: a method has the same colour and mark in every chart and table of a page, and zero-shot CLIP is
always the grey dotted line.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedclip_edge import __version__
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.reporting.chart import (
    NARROW_PX,
    WIDE_PX,
    Axis,
    Chart,
    Line,
    Style,
    bytes_axis,
    chart_layout,
)
from fedclip_edge.reporting.page import write_page
from fedclip_edge.simulating.results import Outcome, Point
from fedclip_edge.simulating.summary import Row, by_domain, means, percent

TEMPLATE = Path(__file__).resolve().with_name("report.html.j2")
_BYTES = "bytes sent and received by all devices"


@dataclass(frozen=True)
class Drawing:
    """One chart of the page, in a wide and a narrow layout."""

    title: str
    about: str
    charts: tuple[tuple[str, Chart], ...]


def write_report(
    path: Path, rows: Sequence[Row], outcomes: Sequence[Outcome], whole: Mapping[str, Any]
) -> None:
    """Write the page atomically; `whole` is the content of summary.json.

    There must be at least one row. Raises OSError if the file cannot be written.
    """
    domains = by_domain(rows)
    values = {
        "version": __version__,
        "whole": whole,
        "means": means(rows),
        "owners": [row for row in means(rows) if row.other_pictures],
        "domains": domains,
        "details": domains or {rows[0].held_out: list(rows)},
        "styles": styles(outcomes),
        "best": best(rows),
        "drawings": drawings(outcomes),
        "share": percent,
        "has_held_out": any(row.held_out_top1 for row in rows),
        "has_others": any(row.auroc for row in rows),
        "has_views": any(row.view for row in rows),
        "has_lines": any(one.run.setting.line != "federated" for one in outcomes),
        "has_personal": any(one.run.setting.plan.personal_epochs for one in outcomes),
        "seeds": max(row.seeds for row in rows),
    }
    write_page(path, TEMPLATE, values)


def best(rows: Sequence[Row]) -> str:
    """Compare the best federated mean with zero-shot, and with devices alone if they are better.

    If no setting sent anything, it names the best of all settings. There must be at least one row.
    """
    measured = [row for row in means(rows) if row.mean is not None]
    sent = [row for row in measured if row.up_bytes > 0] or measured
    if not sent:
        return "No device has test pictures."

    def mean(row: Row) -> float:
        assert row.mean is not None
        return row.mean.mean

    first = max(sent, key=mean)
    said = (
        f"{first.method} reaches {percent(first.mean)} % mean accuracy on the devices' own test "
        f"pictures; zero-shot CLIP, without training, {percent(first.zero_shot)} %."
    )
    alone = [row for row in measured if row.line == "local" and mean(row) > mean(first)]
    if alone:
        ahead = max(alone, key=mean)
        said += (
            f" Devices that train alone, without a fleet, reach {percent(ahead.mean)} % there "
            f"({ahead.method})."
        )
    return said


def styles(outcomes: Sequence[Outcome]) -> dict[str, Style]:
    """Choose a style for each setting, in the order of the comparison."""
    settings = {one.run.setting.label: one.run.setting for one in outcomes}
    numbers = itertools.count()
    return {
        label: "zero-shot" if setting.plan.method == zeroshot.MODEL.method else next(numbers)
        for label, setting in settings.items()
    }


def drawings(outcomes: Sequence[Outcome]) -> list[Drawing]:
    """Make charts by round and by bytes, for the devices' own pictures and the held-out ones."""
    found = []
    views = dict.fromkeys(one.view for one in outcomes)
    for view in views:
        shown = [one for one in outcomes if one.view == view]
        of = f", {view} classes" if view else ""
        own: Callable[[Point], float | None] = lambda point: point.mean  # noqa: E731
        apart: Callable[[Point], float | None] = lambda point: point.held_out  # noqa: E731
        found += _pair(shown, f"The devices' own test pictures{of}", own, _zero_shot)
        if any(one.held_out for one in shown):
            found += _pair(shown, f"The held-out domain's pictures{of}", apart, _held_out_zero_shot)
    return found


def _pair(
    outcomes: Sequence[Outcome],
    title: str,
    value: Callable[[Point], float | None],
    zero_shot: Callable[[Outcome], float | None],
) -> list[Drawing]:
    style_of = styles(outcomes)
    groups: dict[str, list[Outcome]] = {}
    for one in outcomes:
        if style_of[one.run.setting.label] != "zero-shot":  # one line stands for it
            groups.setdefault(one.run.setting.label, []).append(one)
    before = Line("zero-shot", [_mean([zero_shot(one) for one in outcomes])], None, "zero-shot")
    by_round = [
        Line(label, _means(its, value), None, style_of[label]) for label, its in groups.items()
    ]
    spent = {label: _spent(its) for label, its in groups.items()}
    by_bytes = [
        replace(
            line,
            by_round=[
                v if n > 0 else None for v, n in zip(line.by_round, spent[line.name], strict=True)
            ],
            at=[math.log10(n) if n > 0 else 0.0 for n in spent[line.name]],
        )
        for line in by_round
    ]
    axis = bytes_axis([n for its in spent.values() for n in its], _BYTES)
    about = "Mean accuracy over devices, seeds and held-out domains."
    made = [Drawing(f"{title}, by round", about, _both([*by_round, before]))]
    if any(line.by_round.count(None) < len(line.by_round) for line in by_bytes):
        about = "The axis is logarithmic. Methods that send nothing (:local, :pooled) are left out."
        made.append(
            Drawing(f"{title}, by bytes sent and received", about, _both([*by_bytes, before], axis))
        )
    return made


def _both(lines: Sequence[Line], axis: Axis | None = None) -> tuple[tuple[str, Chart], ...]:
    return (
        ("wide", chart_layout(lines, *WIDE_PX, name_columns=26, axis=axis)),
        ("narrow", chart_layout(lines, *NARROW_PX, name_columns=0, axis=axis)),
    )


def _means(
    outcomes: Sequence[Outcome], value: Callable[[Point], float | None]
) -> list[float | None]:
    return [
        _mean([value(one.points[number]) for one in outcomes])
        for number in range(len(outcomes[0].points))
    ]


def _spent(outcomes: Sequence[Outcome]) -> list[int]:
    return [
        round(statistics.fmean(one.points[number].body_bytes for one in outcomes))
        for number in range(len(outcomes[0].points))
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _zero_shot(one: Outcome) -> float | None:
    return one.zero_shot.mean if one.zero_shot else None


def _held_out_zero_shot(one: Outcome) -> float | None:
    return one.held_out_zero_shot.top1 if one.held_out_zero_shot else None
