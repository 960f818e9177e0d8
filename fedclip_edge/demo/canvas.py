"""Drawing on a canvas: the functions that the styles of the drawn world share.

Law: all randomness comes from the generator that is passed in. Pillow's own noise takes no seed, so
noise is made from `Random.randbytes`.
"""

from __future__ import annotations

import random

from PIL import Image, ImageChops, ImageDraw

from fedclip_edge.demo.geometry import Part, Point
from fedclip_edge.demo.scenes import Colour

SIDE_PX = 64
FINE = 3  # pictures are drawn this many times larger and then reduced, to smooth edges
BIG_PX = SIDE_PX * FINE


def pixels(points: tuple[Point, ...], side_px: int = BIG_PX) -> list[Point]:
    """Points of the unit square, in pixels on a canvas of side `side_px`."""
    return [(x * side_px, y * side_px) for x, y in points]


def fill(pen: ImageDraw.ImageDraw, part: Part, colour: Colour | int, side_px: int = BIG_PX) -> None:
    """Draw a part in one colour on a canvas of side `side_px`."""
    path = pixels(part.points, side_px)
    if part.width > 0:
        width = max(2, round(part.width * side_px))
        pen.line(path, fill=colour, width=width, joint="curve")
    else:
        pen.polygon(path, fill=colour)


def moved(part: Part, dx: float, dy: float) -> Part:
    """The part shifted by (dx, dy), in units of the picture's side."""
    return Part(tuple((x + dx, y + dy) for x, y in part.points), part.tone, part.width)


def bounds(part: Part) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a part in pixels of a large canvas, at least one pixel apart."""
    path = pixels(part.points)
    left, top = int(min(x for x, _ in path)), int(min(y for _, y in path))
    right, bottom = int(max(x for x, _ in path)) + 1, int(max(y for _, y in path)) + 1
    return left, top, right, bottom


def noisy(picture: Image.Image, rng: random.Random, strength: float) -> Image.Image:
    """The RGB picture with noise of at most `strength` grey levels up or down."""
    grain = Image.frombytes("RGB", picture.size, rng.randbytes(picture.width * picture.height * 3))
    grain = grain.point([int(level * 2 * strength / 255) for level in range(256)] * 3)
    return ImageChops.add(picture, grain, offset=-int(strength))


def reduced(canvas: Image.Image) -> Image.Image:
    """A large canvas, reduced to 64 x 64 pixels."""
    return canvas.reduce(FINE)


def vivid(colour: Colour) -> Colour:
    """The colour, more saturated and a little brighter."""
    middle = sum(colour) / 3
    red, green, blue = (max(0, min(255, int(middle + (c - middle) * 1.35 + 12))) for c in colour)
    return (red, green, blue)
