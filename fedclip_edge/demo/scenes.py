"""A scene of the drawn world: a thing with its pose and colours, before a style is applied.

Law: a scene depends on the class and the seed only, so that one seed shows the same thing in every
style.
"""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass

from fedclip_edge.demo.geometry import Part, Point, Tone
from fedclip_edge.demo.shapes import SHAPES

Colour = tuple[int, int, int]

# The words that captions use for the main colour, and their RGB values before the jitter.
COLOURS: dict[str, Colour] = {
    "red": (205, 50, 45),
    "orange": (233, 132, 40),
    "yellow": (240, 205, 60),
    "green": (70, 150, 70),
    "blue": (55, 105, 200),
    "purple": (130, 75, 165),
    "pink": (236, 140, 170),
    "brown": (135, 88, 52),
    "grey": (140, 145, 150),
    "white": (238, 236, 228),
}
_SKINS: tuple[Colour, ...] = ((250, 214, 184), (228, 180, 140), (188, 130, 92), (120, 78, 52))

# Usual colours of each thing: one group each for its main, second and third tone.
_USUAL: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "boat": (("brown", "red", "blue", "white"), ("white", "yellow", "red"), ("red", "blue")),
    "car": (("red", "blue", "yellow", "grey", "white", "green"), ("white", "grey"), ("grey",)),
    "cup": (("white", "blue", "red", "yellow", "pink"), ("white", "grey"), ("red", "blue")),
    "face": (("",), ("brown", "yellow", "grey", "orange"), ("red", "pink")),
    "fish": (("orange", "grey", "blue", "yellow"), ("red", "blue", "orange"), ("white", "blue")),
    "flower": (("red", "pink", "yellow", "purple", "white"), ("yellow", "brown"), ("green",)),
    "house": (("white", "yellow", "grey", "pink", "brown"), ("red", "brown", "grey"),
              ("brown", "blue", "green", "red")),
    "star": (("yellow", "white", "orange", "red"), ("orange", "white", "yellow"), ("red",)),
    "tree": (("green", "green", "green", "orange"), ("brown",), ("red", "yellow")),
    "umbrella": (("red", "blue", "green", "purple", "yellow"), ("white", "yellow", "pink"),
                 ("brown", "grey")),
}  # fmt: skip

# The largest tilt of each thing, in degrees; 6 for things not listed.
_LEAN = {"star": 36.0, "fish": 22.0, "flower": 14.0, "umbrella": 28.0, "cup": 9.0}


@dataclass(frozen=True)
class Scene:
    """A thing in its place.

    - `parts`: from back to front, in a picture of side 1;
    - `colours`: one for every tone;
    - `ground` (the background) and `floor`: different from the main colour;
    - `horizon`: the height of the line between background and floor, from 0 at the top to 1;
    - `words`: adjectives for a caption, possibly none.
    """

    parts: tuple[Part, ...]
    colours: dict[Tone, Colour]
    ground: Colour
    floor: Colour
    horizon: float
    words: tuple[str, ...]


def compose(class_name: str, seed: int) -> Scene:
    """Compose the scene of a class and a seed; raises KeyError for an unknown class."""
    rng = random.Random(f"scene/{class_name}/{seed}")
    parts = SHAPES[class_name](rng)
    half = rng.uniform(0.29, 0.45)
    lean = _LEAN.get(class_name, 6.0)
    turn = math.radians(rng.uniform(-lean, lean))
    wide, high = half * rng.uniform(0.9, 1.08), half * rng.uniform(0.9, 1.08)
    if rng.random() < 0.5:
        wide = -wide
    slack = max(0.0, 0.47 - half)
    x, y = 0.5 + rng.uniform(-slack, slack), 0.5 + rng.uniform(-slack, slack)
    cos, sin = math.cos(turn), math.sin(turn)

    def place(point: Point) -> Point:
        u, v = point[0] * wide, point[1] * high
        return (x + u * cos - v * sin, y + u * sin + v * cos)

    placed = tuple(
        Part(tuple(place(p) for p in part.points), part.tone, part.width * half) for part in parts
    )
    name, colours = _colours(class_name, rng)
    ground, floor = _apart(colours["main"], rng), _apart(colours["main"], rng)
    size = "small" if half < 0.335 else "big" if half > 0.405 else ""
    words = tuple(word for word in (size, name) if word)
    return Scene(placed, colours, ground, floor, rng.uniform(0.55, 0.85), words)


def _colours(class_name: str, rng: random.Random) -> tuple[str, dict[Tone, Colour]]:
    usual = rng.random() < 0.6
    names = [rng.choice(choices if usual else tuple(COLOURS)) for choices in _USUAL[class_name]]
    main = COLOURS[names[0]] if names[0] else rng.choice(_SKINS)
    second, third = COLOURS[names[1]], COLOURS[names[2]]
    for _ in range(20):  # the parts of a thing must be distinguishable
        if distance(main, second) > 90:
            break
        second = rng.choice(tuple(COLOURS.values()))
    for _ in range(20):
        if distance(main, third) > 90:
            break
        third = rng.choice(tuple(COLOURS.values()))
    return names[0], {
        "main": _jitter(main, rng),
        "second": _jitter(second, rng),
        "third": _jitter(third, rng),
        "dark": _jitter((45, 42, 48), rng),
        "light": _jitter((232, 238, 242), rng),
    }


def distance(one: Colour, other: Colour) -> float:
    """The Euclidean distance between two RGB colours, 0 to 441."""
    return math.dist(one, other)


def shaded(colour: Colour, factor: float) -> Colour:
    """The colour, darkened by a factor below 1 or lightened towards white by one above 1."""
    if factor <= 1:
        red, green, blue = (int(c * factor) for c in colour)
    else:
        red, green, blue = (int(c + (255 - c) * min(1.0, factor - 1)) for c in colour)
    return (red, green, blue)


def _jitter(colour: Colour, rng: random.Random, amount: int = 16) -> Colour:
    red, green, blue = (max(0, min(255, c + rng.randint(-amount, amount))) for c in colour)
    return (red, green, blue)


def _apart(main: Colour, rng: random.Random) -> Colour:
    """A background colour that the main colour stands out from."""
    colour = main
    for _ in range(50):
        hue, saturation = rng.random(), rng.uniform(0.1, 0.6)
        value = rng.uniform(0.35, 0.95)
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colour = (int(red * 255), int(green * 255), int(blue * 255))
        if distance(colour, main) > 120:
            break
    return colour
