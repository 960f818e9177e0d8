"""The report's chart: everything is within the view box, and labels are readable."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.reporting.chart import (
    LABEL_GAP_PX,
    NARROW_PX,
    WIDE_PX,
    Line,
    chart_layout,
    percent_ticks,
    round_ticks,
    spread,
)

_fractions = st.lists(st.none() | st.floats(0, 1), max_size=40)
_lines = st.builds(
    Line, st.text(max_size=40), _fractions, st.none() | st.floats(0, 1), held_out=st.booleans()
)


@given(st.lists(_lines, max_size=12), st.booleans())
def test_everything_stands_inside_the_view_box(lines: list[Line], wide: bool) -> None:
    size, columns = (WIDE_PX, 18) if wide else (NARROW_PX, 11)
    chart = chart_layout(lines, *size, name_columns=columns, figures=wide)
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
        assert len(curve.label) <= columns + len(" 100.0 %") * wide
    labels = sorted(curve.label_y_px for curve in chart.curves)
    assert all(b - a >= LABEL_GAP_PX - 0.2 for a, b in pairwise(labels))


def test_a_line_is_drawn_where_its_figures_are() -> None:
    lines = [
        Line("a", [0.2, None, 0.4, 0.6], 0.3),
        Line("nobody", [None], 0.9),
        Line("b", [0.6], 0.6, held_out=True),
        Line("c", [0.5], None),
    ]
    chart = chart_layout(lines, 500, 300, name_columns=10, figures=True)
    a, b, c = chart.curves
    assert [tick.text for tick in chart.y_ticks] == ["20 %", "30 %", "40 %", "50 %", "60 %"]
    assert [tick.text for tick in chart.x_ticks] == ["0", "1", "2", "3"]
    assert (a.label, b.label, c.label) == ("a 60.0 %", "b 60.0 %", "c 50.0 %")
    assert (a.colour, b.held_out, c.colour, c.zero_shot_y_px) == (0, True, 1, None)
    assert a.title == "a: zero-shot 30.0 %, 60.0 % after round 3"
    left, right, top, bottom = chart.left_px, chart.right_px, chart.top_px, chart.bottom_px
    assert a.end_px == (right, top)
    assert b.end_px == (left, top)
    # Round 1 is missing: the line must not cross it.
    assert a.path.startswith(f"M{left:g} {bottom:g}h0M")
    assert a.path.endswith(f"L{right:g} {top:g}")
    assert a.path.count("L") == 1


def test_long_and_wide_names_are_cut() -> None:
    lines = [Line("x" * 50, [0.5], 0.5), Line("画" * 50, [0.5], 0.5)]
    chart = chart_layout(lines, *NARROW_PX, name_columns=11, figures=False)
    assert [curve.label for curve in chart.curves] == ["x" * 10 + "…", "画" * 5 + "…"]


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
    places = spread(wanted, 17, 0, 300)
    assert all(-1e-6 <= place <= 300 + 1e-6 for place in places)
    ordered = sorted(places)
    assert all(b - a >= 17 - 1e-6 for a, b in pairwise(ordered))
    for i, a in enumerate(wanted):
        for j, b in enumerate(wanted):
            assert a >= b or places[i] < places[j]


def test_spread_moves_no_more_than_it_must() -> None:
    assert spread([10, 50, 90], 17, 0, 100) == [10, 50, 90]
    assert spread([50, 50], 10, 0, 100) == [45, 55]
    assert spread([99, 100], 10, 0, 100) == [90, 100]
