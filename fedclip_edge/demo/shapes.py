"""The ten things of the drawn world, as lists of parts before any style is applied.

Law: a shape does not depend on the style; every style draws the same parts.

x points to the right and y down, and a shape stays within about -1 to 1 on both axes. Parts are
listed from back to front.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from fedclip_edge.demo.geometry import Part, Point, box, ellipse, ribbon


def _house(rng: random.Random) -> list[Part]:
    half = rng.uniform(0.58, 0.8)
    eaves = rng.uniform(-0.2, 0.02)
    eave = half + rng.uniform(0.1, 0.2)
    ridge = rng.choice((0.0, 0.0, rng.uniform(0.25, 0.45)))  # a gable, or a hipped roof
    parts = []
    if rng.random() < 0.7:
        x = rng.uniform(0.3, 0.45)
        parts.append(Part(box(x, -0.9, x + 0.2, -0.3), "third"))
    parts.append(Part(box(-half, eaves, half, 0.88), "main"))
    roof = ((-eave, eaves), (-ridge, -0.9), (ridge, -0.9), (eave, eaves))
    parts.append(Part(roof, "second"))
    door = rng.choice((-0.3, 0.0, 0.25)) * half / 0.7
    parts.append(Part(box(door - 0.15, 0.36, door + 0.15, 0.88), "third"))
    size = rng.uniform(0.13, 0.17)
    for x in (-0.45 * half / 0.7, 0.45 * half / 0.7):
        if abs(x - door) > 0.2 + size:
            y = (eaves + 0.88) / 2 - 0.08
            frame = size + 0.035
            parts.append(Part(box(x - frame, y - frame, x + frame, y + frame), "dark"))
            parts.append(Part(box(x - size, y - size, x + size, y + size), "light"))
            parts.append(Part(((x, y - size), (x, y + size)), "dark", 0.05))
            parts.append(Part(((x - size, y), (x + size, y)), "dark", 0.05))
    return parts


def _tree(rng: random.Random) -> list[Part]:
    thick = rng.uniform(0.1, 0.16)
    trunk = ((-thick * 1.4, 0.95), (-thick, -0.1), (thick, -0.1), (thick * 1.4, 0.95))
    parts = [Part(trunk, "second")]
    if rng.random() < 0.4:  # a fir
        tiers = rng.choice((3, 4))
        for i in range(tiers):
            low = 0.5 - i * 1.0 / tiers
            half = 0.72 - i * 0.46 / (tiers - 1)
            parts.append(Part(((-half, low), (0.0, low - 0.62), (half, low)), "main"))
        return parts
    bumps = rng.randint(6, 9)
    turn = rng.uniform(0, 360)
    wide, high = rng.uniform(0.62, 0.8), rng.uniform(0.5, 0.62)
    crown = []
    for i in range(72):
        angle = math.radians(i * 5)
        swell = 1 + 0.1 * abs(math.sin(bumps * angle / 2 + math.radians(turn)))
        crown.append((wide * swell * math.cos(angle), -0.32 + high * swell * math.sin(angle)))
    parts.append(Part(tuple(crown), "main"))
    if rng.random() < 0.4:  # fruit
        for _ in range(rng.randint(4, 6)):
            x, y = rng.uniform(-0.45, 0.45), -0.32 + rng.uniform(-0.35, 0.35)
            parts.append(Part(ellipse(x, y, 0.08, 0.08), "third"))
    else:
        parts.append(Part(ellipse(-0.2, -0.35, 0.3, 0.22, 160, 280), "dark", 0.05))
        parts.append(Part(ellipse(0.3, -0.1, 0.25, 0.2, 160, 280), "dark", 0.05))
    return parts


def _fish(rng: random.Random) -> list[Part]:
    high = rng.uniform(0.4, 0.58)
    fork = rng.uniform(0.62, 0.78)
    tail = ((0.38, 0.0), (0.95, -high * 1.1), (fork, 0.0), (0.95, high * 1.1))
    parts = [Part(tail, "second")]
    fin = ((-0.25, -high * 0.8), (0.1, -high - 0.32), (0.38, -high * 0.55))
    parts.append(Part(fin, "second"))
    if rng.random() < 0.6:
        parts.append(Part(((-0.1, high * 0.8), (0.15, high + 0.25), (0.3, high * 0.6)), "second"))
    upper = [(-0.95 + 1.5 * i / 16, -high * math.sin(math.pi * i / 16) ** 0.8) for i in range(17)]
    body = (*upper, *((x, -y) for x, y in reversed(upper)))
    parts.append(Part(body, "main"))
    if rng.random() < 0.5:
        for x in (-0.1, 0.15):
            tall = high * 0.78
            parts.append(Part(ellipse(x - 0.2, 0.0, 0.25, tall, -70, 70), "third", 0.1))
    else:
        parts.append(Part(ellipse(-0.75, 0.0, 0.42, high * 0.85, -52, 52), "dark", 0.05))
        parts.append(Part(((-0.05, 0.05), (0.2, 0.22), (0.2, -0.1)), "second"))
    parts.append(Part(ellipse(-0.62, -0.1, 0.11, 0.11), "light"))
    parts.append(Part(ellipse(-0.63, -0.1, 0.055, 0.055), "dark"))
    return parts


def _car(rng: random.Random) -> list[Part]:
    top = rng.uniform(-0.62, -0.48)
    front, back = rng.uniform(0.45, 0.62), rng.uniform(0.55, 0.85)
    cabin = ((-back, -0.02), (-back + 0.22, top), (front - 0.3, top), (front, -0.02))
    parts = [Part(cabin, "main")]
    pillar = rng.uniform(-0.15, 0.05)
    glass = top + 0.11
    parts.append(
        Part(
            ((-back + 0.17, -0.06), (-back + 0.31, glass), (pillar - 0.05, glass),
             (pillar - 0.05, -0.06)),
            "light",
        )
    )  # fmt: skip
    parts.append(
        Part(
            ((pillar + 0.05, -0.06), (pillar + 0.05, glass), (front - 0.36, glass),
             (front - 0.12, -0.06)),
            "light",
        )
    )  # fmt: skip
    body = (
        (-0.95, 0.35), (-0.95, 0.08), (-0.85, -0.05), (0.62, -0.05), (0.9, 0.05), (0.97, 0.18),
        (0.97, 0.35),
    )  # fmt: skip
    parts.append(Part(body, "main"))
    if rng.random() < 0.5:
        parts.append(Part(box(-0.95, 0.14, 0.97, 0.22), "second"))
    parts.append(Part(ellipse(0.87, 0.12, 0.08, 0.07), "light"))
    radius = rng.uniform(0.22, 0.27)
    for x in (-0.52, 0.54):
        parts.append(Part(ellipse(x, 0.36, radius, radius), "dark"))
        parts.append(Part(ellipse(x, 0.36, radius * 0.45, radius * 0.45), "light"))
    return parts


def _star(rng: random.Random) -> list[Part]:
    inner = rng.uniform(0.36, 0.48)
    points = []
    for i in range(10):
        radius = 0.98 if i % 2 == 0 else inner
        angle = math.radians(36 * i - 90)
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    parts = [Part(tuple(points), "main")]
    kind = rng.random()
    if kind < 0.4:  # facets, as on a compass rose
        parts += [Part(((0.0, 0.0), points[i], points[i + 1]), "second") for i in range(0, 10, 2)]
    elif kind < 0.65:
        parts.append(Part(tuple((x * 0.55, y * 0.55) for x, y in points), "second"))
    return parts


def _cup(rng: random.Random) -> list[Part]:
    top, foot = rng.uniform(0.5, 0.6), rng.uniform(0.32, 0.5)
    rim = rng.uniform(-0.5, -0.35)
    low = 0.72
    parts = []
    if rng.random() < 0.5:
        parts.append(Part(ellipse(-0.1, low + 0.03, 0.85, 0.17), "second"))
    handle = ellipse(top - 0.2, (rim + low) / 2 - 0.08, 0.5, 0.36, -78, 82)
    parts.append(Part(ribbon(handle, 0.15), "main"))
    curve = ellipse(-0.1, low - 0.08, foot, 0.14, 0, 180)
    parts.append(Part(((-0.1 - top, rim), *reversed(curve), (-0.1 + top, rim)), "main"))
    if rng.random() < 0.5:
        band = top * 0.92
        line = ellipse(-0.1, rim + 0.36, band, 0.14, 8, 172)
        parts.append(Part(line, "third", 0.14))
    parts.append(Part(ellipse(-0.1, rim, top, 0.15), "light"))
    parts.append(Part(ellipse(-0.1, rim + 0.02, top - 0.1, 0.1), "dark"))
    if rng.random() < 0.6:
        for x in (-0.32, -0.08, 0.14)[: rng.randint(2, 3)]:
            wave = tuple((x + 0.06 * math.sin(i * 0.9), rim - 0.16 - 0.06 * i) for i in range(8))
            parts.append(Part(wave, "light", 0.06))
    return parts


def _face(rng: random.Random) -> list[Part]:
    wide, high = rng.uniform(0.66, 0.8), rng.uniform(0.78, 0.9)
    parts = []
    long_hair = rng.random() < 0.4
    if long_hair:
        parts.append(Part((*ellipse(0, -0.1, wide + 0.16, 0.88, 180, 360), (wide + 0.14, 0.75),
                           (-wide - 0.14, 0.75)), "second"))  # fmt: skip
    else:
        parts += [Part(ellipse(side * wide, 0.05, 0.15, 0.2), "main") for side in (-1, 1)]
    parts.append(Part(ellipse(0, 0.05, wide, high), "main"))
    brow = rng.uniform(-0.5, -0.34)
    if long_hair or rng.random() < 0.75:
        part = rng.uniform(-0.3, 0.3)
        cap = ellipse(0, 0.05, wide + 0.04, high + 0.06, 208, 332)
        parts.append(Part((*cap, (part, brow)), "second"))
    gap, eye = rng.uniform(0.25, 0.33), rng.uniform(0.1, 0.14)
    for side in (-1, 1):
        parts.append(Part(ellipse(side * gap, -0.08, eye * 1.25, eye), "light"))
        parts.append(Part(ellipse(side * gap, -0.08, eye * 0.6, eye * 0.7), "dark"))
    parts.append(Part(((0.0, 0.02), (-0.07, 0.24), (0.06, 0.25)), "dark", 0.05))
    mood = rng.random()
    if mood < 0.65:
        parts.append(Part(ellipse(0, 0.36, 0.32, 0.2, 15, 165), "third", 0.09))
    elif mood < 0.85:
        parts.append(Part(ellipse(0, 0.46, 0.2, 0.14), "third"))
    else:
        parts.append(Part(ellipse(0, 0.62, 0.28, 0.16, 200, 340), "third", 0.09))
    return parts


def _boat(rng: random.Random) -> list[Part]:
    mast = rng.uniform(-0.15, 0.1)
    deck = rng.uniform(0.36, 0.46)
    parts = [Part(box(mast - 0.035, -0.92, mast + 0.035, deck), "dark")]
    reach = rng.uniform(0.6, 0.78)
    parts.append(
        Part(((mast + 0.07, -0.85), (mast + reach, deck - 0.12), (mast + 0.07, deck - 0.12)),
             "second")
    )  # fmt: skip
    if rng.random() < 0.75:
        parts.append(
            Part(((mast - 0.08, -0.62), (mast - 0.08, deck - 0.12),
                  (mast - reach * 0.8, deck - 0.12)), "light")
        )  # fmt: skip
    else:
        parts.append(Part(((mast, -0.95), (mast - 0.3, -0.84), (mast, -0.72)), "third"))
    hull = ((-0.92, deck), (0.95, deck), (0.62, 0.86), (-0.62, 0.86))
    parts.append(Part(hull, "main"))
    if rng.random() < 0.5:
        parts.append(Part(((-0.86, deck + 0.1), (0.88, deck + 0.1), (0.82, deck + 0.2),
                           (-0.79, deck + 0.2)), "third"))  # fmt: skip
    wave = tuple((-1.05 + 0.1 * i, 0.88 + 0.05 * math.sin(i * 1.6)) for i in range(22))
    parts.append(Part(wave, "light", 0.08))
    return parts


def _flower(rng: random.Random) -> list[Part]:
    y = rng.uniform(-0.42, -0.32)
    bend = rng.uniform(-0.15, 0.15)
    stem = tuple((bend * math.sin(i / 8 * math.pi), y + (0.97 - y) * i / 8) for i in range(9))
    parts = [Part(ribbon(stem, 0.09), "third")]
    for side in rng.choice(((-1,), (1,), (-1, 1))):
        low = rng.uniform(0.45, 0.65)
        tip = (side * 0.55, low - 0.32)
        parts.append(
            Part(((bend * 0.7, low + 0.12), (side * 0.2, low - 0.25), tip,
                  (side * 0.4, low + 0.05)), "third")
        )  # fmt: skip
    petals = rng.randint(5, 8)
    turn = rng.uniform(0, 360)
    long, thick = rng.uniform(0.26, 0.31), 1.05 / petals + 0.03
    for i in range(petals):
        angle = math.radians(turn + 360 * i / petals)
        cx, cy = 0.33 * math.cos(angle), 0.33 * math.sin(angle)
        round_trip = ellipse(0, 0, long, thick)
        parts.append(
            Part(
                tuple(
                    (cx + u * math.cos(angle) - v * math.sin(angle),
                     y + cy + u * math.sin(angle) + v * math.cos(angle))
                    for u, v in round_trip
                ),
                "main",
            )
        )  # fmt: skip
    middle = rng.uniform(0.15, 0.22)
    parts.append(Part(ellipse(0, y, middle, middle), "second"))
    return parts


def _umbrella(rng: random.Random) -> list[Part]:
    top, low = rng.uniform(-0.85, -0.72), rng.uniform(-0.08, 0.08)
    side = rng.choice((-1, 1))
    hook = ellipse(side * 0.15, 0.74, 0.15, 0.18, 180 if side > 0 else 0, 0 if side > 0 else 180)
    shaft = ((0.0, top - 0.12), (0.0, 0.4), (0.0, 0.74), *hook)
    parts = [Part(ribbon(shaft, 0.085), "third")]
    panels = rng.choice((4, 5))
    edges = [-0.95 + 1.9 * i / panels for i in range(panels + 1)]
    for i in range(panels):
        left, right = edges[i], edges[i + 1]
        scallop = ellipse((left + right) / 2, low, (right - left) / 2, 0.13, 0, -180)
        panel = (*_rib(right, top, low), *scallop, *reversed(_rib(left, top, low)))
        parts.append(Part(panel, "main" if i % 2 == 0 else "second"))
    return parts


def _rib(x: float, top: float, low: float) -> tuple[Point, ...]:
    """A rib of an umbrella, from its top to the edge at x."""
    return tuple(
        (x * math.sin(i / 6 * math.pi / 2), low + (top - low) * math.cos(i / 6 * math.pi / 2))
        for i in range(7)
    )


SHAPES: dict[str, Callable[[random.Random], list[Part]]] = {
    "boat": _boat,
    "car": _car,
    "cup": _cup,
    "face": _face,
    "fish": _fish,
    "flower": _flower,
    "house": _house,
    "star": _star,
    "tree": _tree,
    "umbrella": _umbrella,
}
