"""Numbers as the demo's report writes them.

Law: what is not a finite number, so a figure that nobody measured, reads "n/a".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def number(value: object) -> float | None:
    """The value where it is a finite number."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def difference(accuracy: Mapping[str, Any], after: str, before: str) -> float | None:
    """One accuracy less another, of the figures as shown; None where one is missing.

    So a reader who subtracts what stands on the page finds the difference that stands there.
    """
    new, old = number(accuracy.get(after)), number(accuracy.get(before))
    if new is None or old is None:
        return None
    return (round(100 * new, 1) - round(100 * old, 1)) / 100


def percent(value: object) -> str:
    """A fraction as "77.2 %"."""
    known = number(value)
    return "n/a" if known is None else f"{100 * known:.1f} %"


def points(value: object) -> str:
    """A difference of fractions as "+3.7" points."""
    known = number(value)
    if known is None:
        return "n/a"
    text = f"{100 * known:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\N{MINUS SIGN}")


def whole(value: object) -> str:
    """A count as "1,234"."""
    known = number(value)
    return "n/a" if known is None else f"{known:,.0f}"


def decimal(value: object) -> str:
    """A quantity with one decimal: "1,204.5"."""
    known = number(value)
    return "n/a" if known is None else f"{known:,.1f}"


def kilobytes(value: object) -> str:
    """Bytes in thousands: "16.5"."""
    known = number(value)
    return decimal(None if known is None else known / 1000)
