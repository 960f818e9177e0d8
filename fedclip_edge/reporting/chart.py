"""Layout, in pixels, of charts of accuracy by round or by bytes."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from fedclip_edge.reporting.figures import number, percent

LABEL_GAP_PX = 17.0  # between the middles of two labels with 13 px text
_LABEL_OFFSET_PX = 24.0  # from the end of the axis to a label, with the leader line between them
_CHARACTER_PX = 7.2  # upper estimate for 13 px text in the system fonts
WIDE_PX, NARROW_PX = (880, 400), (360, 330)  # (width, height) on a screen or paper, on a phone


@dataclass(frozen=True)
class Line:
    """Accuracy of one device or method, as fractions.

    `by_round` is the accuracy after round 0, 1, ...; `zero_shot` is the accuracy before adapting.
    """

    name: str
    by_round: Sequence[float | None]
    zero_shot: float | None
    held_out: bool = False
    at: Sequence[float] | None = None  # x by round, in units of the axis; default: the round


@dataclass(frozen=True)
class Axis:
    """The horizontal axis: its ends, its marks (place, text) and its title."""

    first: float
    last: float
    marks: tuple[tuple[float, str], ...]
    title: str


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place and its text."""

    at_px: float
    text: str


@dataclass(frozen=True)
class Curve:
    """A line of the chart; positions are in pixels of the chart."""

    title: str
    label: str
    label_y_px: float
    path: str  # the attribute d of an SVG path
    end_px: tuple[float, float]
    zero_shot_y_px: float | None
    colour: int  # index of the line's colour, from 0; -1 for a held-out line
    held_out: bool


@dataclass(frozen=True)
class Chart:
    """A chart laid out in a view box of `width_px` x `height_px`.

    The plot is inside `left_px`, `top_px`, `right_px` and `bottom_px`. Labels start at
    `label_x_px`, to the right of the plot.
    """

    width_px: float
    height_px: float
    left_px: float
    top_px: float
    right_px: float
    bottom_px: float
    label_x_px: float
    x_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]


def chart_layout(
    lines: Sequence[Line],
    width_px: float,
    height_px: float,
    *,
    name_columns: int,
    figures: bool,
    axis: Axis | None = None,
) -> Chart:
    """Place lines, ticks and labels; a pure function.

    Without `axis`, the axis counts rounds. Names are cut to `name_columns` columns, each as wide as
    a Latin letter; `figures` puts the last accuracy after each name. The chart is higher than
    `height_px` if its labels would not fit otherwise. A line without a finite accuracy is left out.
    """
    known = [
        [(x, v) for x, value in enumerate(line.by_round) if (v := number(value)) is not None]
        for line in lines
    ]
    shown = [i for i, at in enumerate(known) if at]
    labels = [
        _cut(line.name, name_columns) + (f" {percent(at[-1][1])}" if figures and at else "")
        for line, at in zip(lines, known, strict=True)
    ]
    left, top = 46.0, 30.0
    label_x = width_px - max((_CHARACTER_PX * _columns(labels[i]) for i in shown), default=0.0)
    right = label_x - _LABEL_OFFSET_PX
    height = max(height_px, top + LABEL_GAP_PX * len(shown) + 46.0)
    bottom = height - 46.0

    if axis is None:
        axis = round_axis(
            max([0, *(len(line.by_round) - 1 for line in lines)]), int((right - left) // 50)
        )
    from_x, wide = axis.first, axis.last - axis.first
    values = [100 * value for at in known for _, value in at]
    values += [100 * v for i in shown if (v := number(lines[i].zero_shot)) is not None]
    y_ticks = percent_ticks(values)
    low, high = y_ticks[0], y_ticks[-1]

    def place(x: float, fraction: float) -> tuple[float, float]:
        across, up = (x - from_x) / (wide or 1), (100 * fraction - low) / (high - low)
        return round(left + across * (right - left), 1), round(bottom - up * (bottom - top), 1)

    def at(line: Line, round: int) -> float:
        return round if line.at is None else line.at[round]

    ends = [place(at(lines[i], known[i][-1][0]), known[i][-1][1]) for i in shown]
    heights = spread([y for _, y in ends], LABEL_GAP_PX, top, bottom)
    colours = iter(range(len(lines)))
    curves = []
    for i, end, label_y in zip(shown, ends, heights, strict=True):
        line, zero_shot = lines[i], number(lines[i].zero_shot)
        curves.append(
            Curve(
                title=f"{line.name}: zero-shot {percent(zero_shot)}, "
                f"{percent(known[i][-1][1])} after round {known[i][-1][0]}",
                label=labels[i],
                label_y_px=round(label_y, 1),
                path=_path([(x, *place(at(line, x), value)) for x, value in known[i]]),
                end_px=end,
                zero_shot_y_px=None if zero_shot is None else place(from_x, zero_shot)[1],
                colour=-1 if line.held_out else next(colours),
                held_out=line.held_out,
            )
        )
    return Chart(
        width_px=width_px,
        height_px=height,
        left_px=left,
        top_px=top,
        right_px=round(right, 1),
        bottom_px=bottom,
        label_x_px=round(label_x, 1),
        x_title=axis.title,
        x_ticks=tuple(Tick(place(x, 0)[0], text) for x, text in axis.marks),
        y_ticks=tuple(Tick(place(from_x, y / 100)[1], f"{y} %") for y in y_ticks),
        curves=tuple(curves),
    )


def round_axis(rounds: int, most: int) -> Axis:
    """Return an axis from 0 to `rounds`, with about `most` marks."""
    marks = tuple((float(x), str(x)) for x in round_ticks(rounds, most))
    return Axis(0, rounds, marks, "rounds closed")


def bytes_axis(counts: Sequence[int], title: str) -> Axis:
    """Return a logarithmic axis of whole decades that holds all counts above 0.

    Places on the axis are log10 of the bytes. If all counts are 0, it goes from 1 to 10 B.
    """
    known = [math.log10(count) for count in counts if count > 0] or [0.0, 1.0]
    first, last = math.floor(min(known)), math.ceil(max(known))
    last = max(last, first + 1)
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    marks = tuple((float(x), f"{10 ** (x % 3)} {units[x // 3]}") for x in range(first, last + 1))
    return Axis(first, last, marks, title)


def percent_ticks(values: Sequence[float]) -> list[int]:
    """Return two to seven round percentages; the first and the last enclose all values."""
    least, most = (round(edge, 6) for edge in (min(values, default=0), max(values, default=100)))
    for step in (1, 2, 5, 10, 20):
        first, last = math.floor(least / step), math.ceil(most / step)
        if first == last:  # a flat line on a tick
            first, last = (first, last + 1) if step * last < 100 else (first - 1, last)
        if last - first <= 6:
            break
    return list(range(step * first, step * last + 1, step))


def round_ticks(rounds: int, most: int) -> list[int]:
    """Return about `most` round numbers, from 0 to exactly `rounds`."""
    steps = (f * 10**power for power in range(len(str(rounds)) + 1) for f in (1, 2, 5))
    step = next(step for step in steps if rounds / step <= max(most, 2))
    ticks = list(range(0, rounds + 1, step))
    if ticks[-1] != rounds:
        if len(ticks) > 1 and rounds - ticks[-1] < step / 2:
            ticks.pop()  # its label would touch the last one
        ticks.append(rounds)
    return ticks


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return the places nearest to `wanted` (least squares), at least `gap` apart, in low..high.

    The result is in the order of `wanted`. The gaps must fit between `low` and `high`. The method
    is isotonic regression: `k * gap` is subtracted from the k-th place in sorted order, neighbours
    in the wrong order are pooled and get their mean, and `k * gap` is added again.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    pools: list[tuple[float, int]] = []  # sum and number of the pooled places
    for rank, i in enumerate(order):
        pool = (wanted[i] - rank * gap, 1)
        while pools and pools[-1][0] / pools[-1][1] >= pool[0] / pool[1]:
            before = pools.pop()
            pool = (before[0] + pool[0], before[1] + pool[1])
        pools.append(pool)
    last = high - gap * (len(wanted) - 1)
    places = [min(max(total / n, low), last) for total, n in pools for _ in range(n)]
    result = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        result[i] = places[rank] + rank * gap
    return result


def _path(at: Sequence[tuple[int, float, float]]) -> str:
    """Return an SVG path through (round, x, y), with a gap where rounds are missing."""
    steps, before = [], None
    for x, x_px, y_px in at:
        # A line of no length (h0) shows a single point as a dot.
        steps.append(f"L{x_px:g} {y_px:g}" if before == x - 1 else f"M{x_px:g} {y_px:g}h0")
        before = x
    return "".join(steps)


def _columns(text: str) -> int:
    """Return the width of the text in Latin letters; wide East Asian characters count twice."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _cut(text: str, columns: int) -> str:
    if _columns(text) <= columns:
        return text
    while _columns(text) > columns - 1:
        text = text[:-1]
    return f"{text}\N{HORIZONTAL ELLIPSIS}"
