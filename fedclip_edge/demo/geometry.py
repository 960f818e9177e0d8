"""The parts that things are drawn from, and functions for their outlines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Point = tuple[float, float]
Tone = Literal["main", "second", "third", "dark", "light"]


@dataclass(frozen=True)
class Part:
    """A filled polygon, or an open line of `width` if `width` is above 0.

    `width` is in the unit of the points.
    """

    points: tuple[Point, ...]
    tone: Tone
    width: float = 0.0


def ellipse(
    x: float, y: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0
) -> tuple[Point, ...]:
    """Points on an ellipse around (x, y), clockwise on the screen; angles in degrees."""
    steps = max(8, int(abs(end - start) / 12))
    turned = (math.radians(start + (end - start) * i / steps) for i in range(steps + 1))
    return tuple((x + rx * math.cos(a), y + ry * math.sin(a)) for a in turned)


def box(left: float, top: float, right: float, bottom: float) -> tuple[Point, ...]:
    """The four corners of an upright rectangle."""
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def ribbon(line: tuple[Point, ...], width: float) -> tuple[Point, ...]:
    """The outline of a band of `width` along a line."""
    left: list[Point] = []
    right: list[Point] = []
    last = len(line) - 1
    for i, (x, y) in enumerate(line):
        before, after = line[max(i - 1, 0)], line[min(i + 1, last)]
        dx, dy = after[0] - before[0], after[1] - before[1]
        scale = width / 2 / max(math.hypot(dx, dy), 1e-9)
        left.append((x - dy * scale, y + dx * scale))
        right.append((x + dy * scale, y - dx * scale))
    return (*left, *reversed(right))
