"""Formatting of numbers in reports.

Law: a value that is not a finite number, such as a figure that was not measured, reads "n/a".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def number(value: object) -> float | None:
    """Return `value` as a float, or None if it is not a finite number."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def difference(accuracy: Mapping[str, Any], after: str, before: str) -> float | None:
    """Return the accuracy at key `after` minus the one at key `before`, as a fraction.

    Both are rounded to 0.1 percentage points first, as in the report, so that the difference agrees
    with the figures next to it. Returns None if one of them is missing.
    """
    new, old = number(accuracy.get(after)), number(accuracy.get(before))
    if new is None or old is None:
        return None
    return (round(100 * new, 1) - round(100 * old, 1)) / 100


def percent(value: object) -> str:
    """Format a fraction as "77.2 %"."""
    known = number(value)
    return "n/a" if known is None else f"{100 * known:.1f} %"


def points(value: object) -> str:
    """Format a difference of fractions in percentage points, as "+3.7"."""
    known = number(value)
    if known is None:
        return "n/a"
    text = f"{100 * known:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\N{MINUS SIGN}")


def whole(value: object) -> str:
    """Format a count as "1,234"."""
    known = number(value)
    return "n/a" if known is None else f"{known:,.0f}"


def decimal(value: object) -> str:
    """Format a quantity with one decimal, as "1,204.5"."""
    known = number(value)
    return "n/a" if known is None else f"{known:,.1f}"


def kilobytes(value: object) -> str:
    """Format bytes in thousands with one decimal, as "16.5"."""
    known = number(value)
    return decimal(None if known is None else known / 1000)


def nats(value: object) -> str:
    """Format a loss with three decimals, as "0.412"."""
    known = number(value)
    return "n/a" if known is None else f"{known:.3f}"


def norm(value: object) -> str:
    """Format a norm with three significant digits, as "0.281"; an update of sums only has "0"."""
    known = number(value)
    if known is None:
        return "n/a"
    return f"{known:#.3g}" if known else "0"


def duration(seconds: float) -> str:
    """Return a duration in words, such as "12 min"."""
    for unit, size_s in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.0f} {unit}"
    return f"{seconds:.0f} s"
