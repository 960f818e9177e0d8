"""Layout, in pixels, of charts of accuracy by round or by bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedclip_edge.reporting.figures import number, percent
from fedclip_edge.reporting.names import columns_of, wrapped

LABEL_GAP_PX = 17.0  # between the middles of two labels of one line with 13 px text
LINE_PX = 15.0  # between two lines of a label
_LABEL_OFFSET_PX = 24.0  # from the end of the axis to a label, with the leader line between them
_CHARACTER_PX = 7.7  # upper estimate for 13 px figures in the system fonts, the widest DejaVu Sans
WIDE_PX, NARROW_PX = (880, 400), (360, 330)  # (width, height) on a screen or paper, on a phone

# The number of a colour and mark, which the page also uses in its tables; or one of two styles
# that look the same in every chart.
Style = int | Literal["held-out", "zero-shot"]


@dataclass(frozen=True)
class Line:
    """Accuracy of one device or method, as fractions.

    `by_round` is the accuracy after round 0, 1, ...; `zero_shot` is the accuracy before adapting,
    if it is to be shown with this line. A line of the style "zero-shot" is level, from one end of
    the axis to the other.
    """

    name: str
    by_round: Sequence[float | None]
    zero_shot: float | None
    style: Style
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

    name: str
    title: str
    label: tuple[tuple[str, float], ...]  # its lines of text, each with the middle of its height
    label_y_px: float  # the middle of the label
    path: str  # the attribute d of an SVG path
    end_px: tuple[float, float]
    zero_shot_y_px: float | None
    style: Style


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
    axis: Axis | None = None,
) -> Chart:
    """Place lines, ticks and labels; a pure function.

    Without `axis`, the axis counts rounds. A label is the line's name and its last accuracy. A name
    of more than `name_columns` columns, each as wide as a Latin letter, is wrapped; with 0, labels
    have no names. The chart is higher than `height_px` if its labels would not fit otherwise. A
    line without a finite accuracy is left out.
    """
    known = [
        [(x, v) for x, value in enumerate(line.by_round) if (v := number(value)) is not None]
        for line in lines
    ]
    shown = [i for i, at in enumerate(known) if at]
    labels = {i: _label(lines[i].name, percent(known[i][-1][1]), name_columns) for i in shown}
    label_heights = [LABEL_GAP_PX + LINE_PX * (len(labels[i]) - 1) for i in shown]
    left, top = 46.0, 30.0
    widest = max((columns_of(text) for label in labels.values() for text in label), default=0)
    label_x = width_px - _CHARACTER_PX * widest
    right = label_x - _LABEL_OFFSET_PX
    height = max(height_px, top + sum(label_heights) + 46.0)
    bottom = height - 46.0

    most = int((right - left) // 50)
    if axis is None:
        axis = round_axis(max([0, *(len(line.by_round) - 1 for line in lines)]), most)
    marks = axis.marks[:: math.ceil(len(axis.marks) / max(most, 1)) or 1]
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

    paths = {i: [(x, *place(at(lines[i], x), value)) for x, value in known[i]] for i in shown}
    for i in shown:
        if lines[i].style == "zero-shot":
            (*_, (_, _, y)) = paths[i]
            paths[i] = [(0, left, y), (1, round(right, 1), y)]
    ends = [paths[i][-1][1:] for i in shown]
    half = LABEL_GAP_PX / 2
    heights = spread([y for _, y in ends], label_heights, top - half, bottom + half)
    curves = []
    for i, end, label_y in zip(shown, ends, heights, strict=True):
        line, zero_shot = lines[i], number(lines[i].zero_shot)
        first_y = label_y - LINE_PX * (len(labels[i]) - 1) / 2
        curves.append(
            Curve(
                name=line.name,
                title=_title(line, known[i][-1]),
                label=tuple(
                    (text, round(first_y + LINE_PX * n, 1)) for n, text in enumerate(labels[i])
                ),
                label_y_px=round(label_y, 1),
                path=_path(paths[i]),
                end_px=end,
                zero_shot_y_px=None if zero_shot is None else place(from_x, zero_shot)[1],
                style=line.style,
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
        x_ticks=tuple(Tick(place(x, 0)[0], text) for x, text in marks),
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


def spread(
    wanted: Sequence[float], heights: Sequence[float], low: float, high: float
) -> list[float]:
    """Return the middles of labels, nearest to `wanted` (least squares), that do not overlap.

    The labels have these heights, stay between `low` and `high` and keep the order of `wanted`.
    Together they must not be higher than `high - low`. The method is isotonic regression: the
    heights of the labels above are subtracted from each place, neighbours in the wrong order are
    pooled and get their mean, and the heights are added again.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    pools: list[tuple[float, int]] = []  # sum and number of the pooled places
    above = 0.0
    for i in order:
        pool = (wanted[i] - heights[i] / 2 - above, 1)
        while pools and pools[-1][0] / pools[-1][1] >= pool[0] / pool[1]:
            before = pools.pop()
            pool = (before[0] + pool[0], before[1] + pool[1])
        pools.append(pool)
        above += heights[i]
    last = high - above
    tops = [min(max(total / n, low), last) for total, n in pools for _ in range(n)]
    result = [0.0] * len(wanted)
    above = 0.0
    for top, i in zip(tops, order, strict=True):
        result[i] = top + above + heights[i] / 2
        above += heights[i]
    return result


def _path(at: Sequence[tuple[int, float, float]]) -> str:
    """Return an SVG path through (round, x, y), with a gap where rounds are missing."""
    steps, before = [], None
    for x, x_px, y_px in at:
        # A line of no length (h0) shows a single point as a dot.
        steps.append(f"L{x_px:g} {y_px:g}" if before == x - 1 else f"M{x_px:g} {y_px:g}h0")
        before = x
    return "".join(steps)


def _label(name: str, figure: str, columns: int) -> list[str]:
    """Return the lines of a label: the name, wrapped if it is long, and the figure."""
    if not columns:
        return [figure]
    lines = wrapped(name, columns)
    return [*lines[:-1], f"{lines[-1]} {figure}"]


def _title(line: Line, last: tuple[int, float]) -> str:
    """Return the text that a browser shows for a line under the pointer."""
    closed, accuracy = last
    if line.style == "zero-shot":
        return f"{line.name}: {percent(accuracy)}"
    before = number(line.zero_shot)
    start = "" if before is None else f"zero-shot {percent(before)}, "
    return f"{line.name}: {start}{percent(accuracy)} after round {closed}"
