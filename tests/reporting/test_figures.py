"""Numbers as text: one decimal, a proper minus sign, and "n/a" for missing values."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedclip_edge.reporting.figures import (
    decimal,
    difference,
    duration,
    kilobytes,
    number,
    percent,
    points,
    whole,
)


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (percent, 0.7724, "77.2 %"),
        (percent, 1, "100.0 %"),
        (points, 0.037, "+3.7"),
        (points, -0.05, "−5.0"),
        (points, 0.0004, "0.0"),
        (points, -0.0004, "0.0"),
        (whole, 1234, "1,234"),
        (decimal, 1204.46, "1,204.5"),
        (kilobytes, 16_512, "16.5"),
        (kilobytes, 1_234_567, "1,234.6"),
    ],
)
def test_a_figure_reads(write: Callable[[object], str], value: float, text: str) -> None:
    assert write(value) == text


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.5", [0.5]])
def test_what_is_no_finite_number_is_not_made_up(value: object) -> None:
    assert number(value) is None
    assert {write(value) for write in (percent, points, whole, decimal, kilobytes)} == {"n/a"}
    assert difference({"before": 0.5, "after": value}, "after", "before") is None
    assert difference({"before": value, "after": 0.5}, "after", "before") is None
    assert difference({"after": 0.5}, "after", "before") is None


def test_a_difference_is_that_of_the_figures_shown() -> None:
    accuracy = {"before": 0.5004, "after": 0.5106}  # shown as 50.0 % and 51.1 %
    assert points(difference(accuracy, "after", "before")) == "+1.1"
    assert points(accuracy["after"] - accuracy["before"]) == "+1.0"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (1e5, "28 h")],
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
