"""The report's chart: everything is within the view box, and labels are readable."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.reporting.chart import (
    LINE_PX,
    NARROW_PX,
    WIDE_PX,
    Line,
    Style,
    bytes_axis,
    chart_layout,
    percent_ticks,
    round_ticks,
    spread,
)

_fractions = st.lists(st.none() | st.floats(0, 1), max_size=40)
_styles: st.SearchStrategy[Style] = st.sampled_from([0, 1, 30, "held-out", "zero-shot"])
_lines = st.builds(Line, st.text(max_size=40), _fractions, st.none() | st.floats(0, 1), _styles)


@given(st.lists(_lines, max_size=12), st.booleans())
def test_everything_stands_inside_the_view_box(lines: list[Line], wide: bool) -> None:
    size, columns = (WIDE_PX, 26) if wide else (NARROW_PX, 0)
    chart = chart_layout(lines, *size, name_columns=columns)
    assert chart.width_px == size[0]
    assert chart.height_px >= size[1]
    assert chart.right_px - chart.left_px > size[0] / 2
    left, right = chart.left_px - 0.1, chart.right_px + 0.1
    top, bottom = chart.top_px - 0.1, chart.bottom_px + 0.1
    assert all(left <= tick.at_px <= right for tick in chart.x_ticks)
    assert all(top <= tick.at_px <= bottom for tick in chart.y_ticks)
    with_figures = [line for line in lines if any(v is not None for v in line.by_round)]
    assert len(chart.curves) == len(with_figures)
    for curve in chart.curves:
        points = re.findall(r"[ML]([\d.]+) ([\d.]+)", curve.path)
        assert points
        assert all(left <= float(x) <= right and top <= float(y) <= bottom for x, y in points)
        assert curve.zero_shot_y_px is None or top <= curve.zero_shot_y_px <= bottom
        assert top <= curve.label_y_px <= bottom
        assert max(len(text) for text, _ in curve.label) <= columns + len(" 100.0 %")
        assert "".join(text for text, _ in curve.label).startswith(curve.name * wide)
        assert all(top - 0.1 <= y_px <= bottom + 0.1 for _, y_px in curve.label)
    labels = sorted(y_px for curve in chart.curves for _, y_px in curve.label)
    assert all(b - a >= LINE_PX - 0.2 for a, b in pairwise(labels))


def test_a_line_is_drawn_where_its_figures_are() -> None:
    lines = [
        Line("a", [0.2, None, 0.4, 0.6], 0.3, 0),
        Line("nobody", [None], 0.9, 1),
        Line("b", [0.6], 0.6, "held-out"),
        Line("c", [0.5], None, 2),
    ]
    chart = chart_layout(lines, 500, 300, name_columns=10)
    a, b, c = chart.curves
    assert [tick.text for tick in chart.y_ticks] == ["20 %", "30 %", "40 %", "50 %", "60 %"]
    assert [tick.text for tick in chart.x_ticks] == ["0", "1", "2", "3"]
    assert [[text for text, _ in curve.label] for curve in (a, b, c)] == [
        ["a 60.0 %"],
        ["b 60.0 %"],
        ["c 50.0 %"],
    ]
    assert (a.style, b.style, c.style, c.zero_shot_y_px) == (0, "held-out", 2, None)
    assert a.title == "a: zero-shot 30.0 %, 60.0 % after round 3"
    left, right, top, bottom = chart.left_px, chart.right_px, chart.top_px, chart.bottom_px
    assert a.end_px == (right, top)
    assert b.end_px == (left, top)
    # Round 1 is missing: the line must not cross it.
    assert a.path.startswith(f"M{left:g} {bottom:g}h0M")
    assert a.path.endswith(f"L{right:g} {top:g}")
    assert a.path.count("L") == 1


def test_zero_shot_is_level_across_the_plot_in_its_own_style() -> None:
    lines = [Line("a", [0.2, 0.4, 0.6], None, 0), Line("zero-shot", [0.4], None, "zero-shot")]
    chart = chart_layout(lines, 500, 300, name_columns=20)
    (curve,) = (curve for curve in chart.curves if curve.style == "zero-shot")
    middle = (chart.top_px + chart.bottom_px) / 2
    assert curve.path == f"M{chart.left_px:g} {middle:g}h0L{chart.right_px:g} {middle:g}"
    assert curve.title == "zero-shot: 40.0 %"


def test_long_and_wide_names_are_wrapped_and_whole() -> None:
    name = "linear@strategy=fedadam,strategy.lr=0.01,lr=1e-3"
    lines = [Line(name, [0.5], None, 0), Line("画" * 20, [0.5], None, 1)]
    chart = chart_layout(lines, *WIDE_PX, name_columns=26)
    assert [[text for text, _ in curve.label] for curve in chart.curves] == [
        ["linear@strategy=fedadam,", "strategy.lr=0.01,lr=1e-3 50.0 %"],
        ["画" * 13, "画" * 7 + " 50.0 %"],
    ]


def test_a_narrow_chart_has_figures_and_few_enough_marks() -> None:
    lines = [Line("x" * 50, [0.5], None, 0, at=[3.0])]
    axis = bytes_axis([100, 10**9], "bytes")
    chart = chart_layout(lines, *NARROW_PX, name_columns=0, axis=axis)
    assert [text for text, _ in chart.curves[0].label] == ["50.0 %"]
    assert all(b.at_px - a.at_px >= 50 for a, b in pairwise(chart.x_ticks))


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([51.3, 90.9], [50, 60, 70, 80, 90, 100]),
        ([77.2, 80.9], [77, 78, 79, 80, 81]),
        ([70.0, 80.0], [70, 72, 74, 76, 78, 80]),
        ([0.0, 100.0], [0, 20, 40, 60, 80, 100]),
        ([100.0], [99, 100]),
        ([0.0], [0, 1]),
        ([56.99999999], [57, 58]),
        ([], [0, 20, 40, 60, 80, 100]),
    ],
)
def test_percent_ticks(values: list[float], ticks: list[int]) -> None:
    assert percent_ticks(values) == ticks


@pytest.mark.parametrize(
    ("rounds", "most", "ticks"),
    [
        (30, 8, [0, 5, 10, 15, 20, 25, 30]),
        (30, 4, [0, 10, 20, 30]),
        (0, 8, [0]),
        (1, 8, [0, 1]),
        (52, 8, [0, 10, 20, 30, 40, 52]),
        (1000, 5, [0, 200, 400, 600, 800, 1000]),
    ],
)
def test_round_ticks(rounds: int, most: int, ticks: list[int]) -> None:
    assert round_ticks(rounds, most) == ticks


@given(st.lists(st.floats(0, 300), max_size=15))
def test_spread_keeps_apart_and_in_order(wanted: list[float]) -> None:
    heights = [17 + 3 * (n % 3) for n in range(len(wanted))]
    places = spread(wanted, heights, 0, 300)
    spans = sorted((y - h / 2, y + h / 2) for y, h in zip(places, heights, strict=True))
    edges = [0.0, *(edge for span in spans for edge in span), 300.0]
    assert all(b - a >= -1e-6 for a, b in pairwise(edges))
    for i, a in enumerate(wanted):
        for j, b in enumerate(wanted):
            assert a >= b or places[i] < places[j]


def test_spread_moves_no_more_than_it_must() -> None:
    assert spread([10, 50, 90], [17] * 3, 0, 100) == [10, 50, 90]
    assert spread([50, 50], [10, 10], 0, 100) == [45, 55]
    assert spread([99, 100], [10, 10], 0, 100) == [85, 95]
    assert spread([50, 50], [30, 10], 0, 100) == [40, 60]
