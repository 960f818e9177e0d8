"""The styles that fill a scene with colour: photo, painting, poster and cartoon.

Law: only `cartoon` draws outlines. A tiny CLIP trained on outlines would recognise sketches too,
and a fleet would have nothing to adapt to.
"""

from __future__ import annotations

import math
import random

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from fedclip_edge.demo.canvas import (
    BIG_PX,
    SIDE_PX,
    bounds,
    fill,
    moved,
    noisy,
    pixels,
    reduced,
    vivid,
)
from fedclip_edge.demo.scenes import Colour, Scene, distance, shaded

_SLOPE = Image.linear_gradient("L").resize((48, 48))
_BALL = ImageOps.invert(Image.radial_gradient("L")).crop((30, 30, 226, 226)).resize((32, 32))


def photo(scene: Scene, rng: random.Random) -> Image.Image:
    """Light from one side, soft shadow, out-of-focus background, grain."""
    canvas = _backdrop(scene, rng).resize((BIG_PX, BIG_PX), Image.Resampling.BILINEAR)
    side = rng.choice((-1, 1))
    turned = _SLOPE.rotate(side * rng.uniform(30, 75), Image.Resampling.BILINEAR)
    slope = turned.crop((8, 8, 40, 40))  # without the black corners of the rotation
    light = Image.blend(slope, _BALL, 0.45)
    shadow = Image.new("L", (SIDE_PX, SIDE_PX), 255)
    pen = ImageDraw.Draw(shadow)
    shift = (-side * 0.05, 0.045)
    for part in scene.parts:
        fill(pen, moved(part, *shift), 110, SIDE_PX)
    shadow = shadow.filter(ImageFilter.BoxBlur(2)).resize(canvas.size, Image.Resampling.BILINEAR)
    canvas = ImageChops.multiply(canvas, Image.merge("RGB", (shadow, shadow, shadow)))
    for part in scene.parts:
        left, top, right, bottom = bounds(part)
        size = (right - left, bottom - top)
        if part.width > 0 or min(size) < 6:  # too thin for shading
            fill(ImageDraw.Draw(canvas), part, scene.colours[part.tone])
            continue
        mask = Image.new("L", size, 0)
        outline = [(x - left, y - top) for x, y in pixels(part.points)]
        ImageDraw.Draw(mask).polygon(outline, fill=255)
        colour = scene.colours[part.tone]
        tile = _blended(shaded(colour, 0.6), shaded(colour, 1.35), light)
        canvas.paste(tile.resize(size, Image.Resampling.BILINEAR), (left, top), mask)
    picture = reduced(canvas).filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.6)))
    return noisy(picture, rng, rng.uniform(4, 9))


def _backdrop(scene: Scene, rng: random.Random) -> Image.Image:
    """An out-of-focus background of SIDE_PX x SIDE_PX."""
    sky, floor = scene.ground, scene.floor
    whole = (SIDE_PX, SIDE_PX)
    canvas = _blended(shaded(sky, 1.35), shaded(sky, 0.85), _SLOPE).resize(whole)
    edge = int(scene.horizon * SIDE_PX)
    ground = _blended(shaded(floor, 0.7), shaded(floor, 1.1), _SLOPE)
    canvas.paste(ground.resize((SIDE_PX, SIDE_PX - edge)), (0, edge))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(2, 6)):
        x, y, r = rng.uniform(0, SIDE_PX), rng.uniform(0, SIDE_PX), rng.uniform(2, 10)
        blob = shaded(rng.choice((sky, floor)), rng.uniform(0.7, 1.4))
        pen.ellipse((x - r, y - r, x + r, y + r), fill=blob)
    return canvas.filter(ImageFilter.GaussianBlur(2.3))


def _blended(dark: Colour, bright: Colour, light: Image.Image) -> Image.Image:
    """Colour the grey picture `light`: black becomes `dark`, white becomes `bright`."""
    return Image.composite(
        Image.new("RGB", light.size, bright), Image.new("RGB", light.size, dark), light
    )


def painting(scene: Scene, rng: random.Random) -> Image.Image:
    """Brush strokes that follow a slowly turning direction, in uneven colours."""
    edge = int(scene.horizon * BIG_PX)
    canvas = Image.new("RGB", (BIG_PX, BIG_PX), scene.ground)
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((0, edge, BIG_PX, BIG_PX), fill=scene.floor)
    bend, phase = rng.uniform(0.01, 0.03), rng.uniform(0, math.pi)
    _strokes(canvas, rng, 90, (11, 18), (24, 45), bend, phase)
    for part in scene.parts:
        fill(pen, part, scene.colours[part.tone])
    _strokes(canvas, rng, 300, (4, 8), (8, 17), bend, phase)
    for part in scene.parts:  # drawn again, to keep small parts recognisable
        left, top, right, bottom = bounds(part)
        if part.tone == "dark" or part.width > 0 or max(right - left, bottom - top) < 34:
            fill(pen, part, scene.colours[part.tone])
    picture = reduced(canvas).filter(ImageFilter.GaussianBlur(0.4))
    return noisy(picture, rng, 8)


def _strokes(
    canvas: Image.Image,
    rng: random.Random,
    count: int,
    widths: tuple[int, int],
    lengths: tuple[int, int],
    bend: float,
    phase: float,
) -> None:
    """Paint `count` short strokes, each in roughly the colour below it; sizes are in pixels."""
    under = noisy(canvas, rng, 30).tobytes()
    pen = ImageDraw.Draw(canvas)
    for _ in range(count):
        x, y = int(rng.random() * BIG_PX), int(rng.random() * BIG_PX)
        at = 3 * (y * BIG_PX + x)
        red, green, blue = under[at : at + 3]
        angle = phase + bend * (x + y) + (rng.random() - 0.5) * 1.2
        reach = rng.uniform(*lengths) / 2
        dx, dy = reach * math.cos(angle), reach * math.sin(angle)
        width = int(rng.uniform(*widths))
        pen.line((x - dx, y - dy, x + dx, y + dy), fill=(red, green, blue), width=width)


def poster(scene: Scene, rng: random.Random) -> Image.Image:
    """A few flat colours without outlines on a geometric background, as in a screen print."""
    canvas = Image.new("RGB", (BIG_PX, BIG_PX), scene.ground)
    pen = ImageDraw.Draw(canvas)
    other = _nearby(scene, rng)
    kind = rng.randrange(4)
    if kind == 0:  # rays
        x, y, rays = (
            rng.uniform(0.2, 0.8) * BIG_PX,
            rng.uniform(0.3, 1.1) * BIG_PX,
            rng.randint(7, 11),
        )
        turn = rng.uniform(0, 6)
        for i in range(rays):
            one, two = turn + 2 * math.pi * i / rays, turn + 2 * math.pi * (i + 0.5) / rays
            far = 2 * BIG_PX
            pen.polygon(
                [(x, y), (x + far * math.cos(one), y + far * math.sin(one)),
                 (x + far * math.cos(two), y + far * math.sin(two))],
                fill=other,
            )  # fmt: skip
    elif kind == 1:  # a sun
        x, y, r = BIG_PX / 2, rng.uniform(0.35, 0.6) * BIG_PX, rng.uniform(0.28, 0.45) * BIG_PX
        pen.ellipse((x - r, y - r, x + r, y + r), fill=other)
    elif kind == 2:  # two fields
        left, right = rng.uniform(0.2, 0.9) * BIG_PX, rng.uniform(0.2, 0.9) * BIG_PX
        pen.polygon([(0, left), (BIG_PX, right), (BIG_PX, BIG_PX), (0, BIG_PX)], fill=other)
    else:  # stripes
        step = rng.randint(18, 34)
        slant = rng.uniform(-0.6, 0.6) * BIG_PX
        for x0 in range(-BIG_PX, 2 * BIG_PX, 2 * step):
            pen.polygon(
                [(x0, 0), (x0 + step, 0), (x0 + step + slant, BIG_PX), (x0 + slant, BIG_PX)],
                fill=other,
            )
    for part in scene.parts:
        fill(pen, part, _bold(scene.colours[part.tone]))
    return reduced(canvas)


def _nearby(scene: Scene, rng: random.Random) -> Colour:
    """A second background colour that stands out from the main colour."""
    for _ in range(10):
        colour = shaded(scene.ground, rng.choice((0.78, 0.86, 1.2, 1.35)))
        if distance(colour, scene.colours["main"]) > 90:
            return colour
    return shaded(scene.ground, 1.1)


def _bold(colour: Colour) -> Colour:
    """The colour, made stronger and rounded to the few levels of a screen print."""
    red, green, blue = (min(255, round(c / 24) * 24) for c in vivid(colour))
    return (red, green, blue)


def cartoon(scene: Scene, rng: random.Random) -> Image.Image:
    """Bright flat colours inside dark outlines."""
    canvas = Image.new("RGB", (BIG_PX, BIG_PX), shaded(scene.ground, 1.35))
    pen = ImageDraw.Draw(canvas)
    ink = (25, 22, 30)
    if rng.random() < 0.7:
        y = scene.horizon * BIG_PX
        hill = [(0.0, y + 10), (BIG_PX * 0.3, y), (BIG_PX * 0.7, y + 4), (float(BIG_PX), y - 6)]
        pen.polygon([*hill, (BIG_PX, BIG_PX), (0, BIG_PX)], fill=shaded(scene.floor, 1.2))
        pen.line(hill, fill=ink, width=2, joint="curve")
    for part in scene.parts:
        colour = vivid(scene.colours[part.tone])
        if part.width > 0:
            fill(pen, part, ink if part.tone == "dark" else colour)
            continue
        path = pixels(part.points)
        pen.polygon(path, fill=colour)
        left, top, right, bottom = bounds(part)
        width = 4 if min(right - left, bottom - top) > 30 else 2  # small parts stay mostly coloured
        pen.line([*path, path[0], path[1]], fill=ink, width=width, joint="curve")
    return reduced(canvas)
