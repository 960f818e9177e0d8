"""The styles that draw a scene in lines: sketch, chalk and neon."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from fedclip_edge.demo.canvas import BIG_PX, FINE, bounds, noisy, pixels, reduced, vivid
from fedclip_edge.demo.geometry import Part, Point
from fedclip_edge.demo.scenes import COLOURS, Scene, shaded


def sketch(scene: Scene, rng: random.Random) -> Image.Image:
    """Pencil on paper: lines drawn twice, soft shading, some hatching."""
    paper = rng.randint(240, 252)
    canvas = Image.new("L", (BIG_PX, BIG_PX), paper)
    pen = ImageDraw.Draw(canvas)
    if rng.random() < 0.6:  # the ground line
        y = scene.horizon * BIG_PX
        tilt = rng.uniform(-6, 6)
        pen.line((rng.uniform(0, 30), y, BIG_PX - rng.uniform(0, 30), y + tilt), fill=170, width=3)
    for part in scene.parts:
        bright = sum(scene.colours[part.tone]) / (3 * 255)
        shade = int(paper * (0.52 + 0.44 * bright))
        _lines(canvas, [part], rng, inside=shade, ink=(65, 105), width=(3, 4), wobble=0.7, passes=2)
        if part.width == 0 and bright < 0.43 and rng.random() < 0.8:
            _hatch(canvas, part, rng, ink=120, width=2, step=rng.randint(8, 11))
    return noisy(reduced(canvas).convert("RGB"), rng, 5)


def chalk(scene: Scene, rng: random.Random) -> Image.Image:
    """Rough, broken, light lines on a blackboard."""
    board = rng.choice(((38, 62, 50), (42, 46, 54), (36, 40, 38)))
    strokes = Image.new("L", (BIG_PX, BIG_PX), 0)
    _lines(strokes, scene.parts, rng, inside=0, ink=(215, 255), width=(6, 8), wobble=0.6, passes=1)
    crumbs = Image.frombytes("L", (BIG_PX // 2, BIG_PX // 2), rng.randbytes((BIG_PX // 2) ** 2))
    crumbs = crumbs.resize((BIG_PX, BIG_PX)).point(lambda level: 255 if level > 70 else 40)
    strokes = ImageChops.multiply(strokes, crumbs)
    chalk = shaded(rng.choice(tuple(COLOURS.values())), 1.65)
    canvas = Image.new("RGB", (BIG_PX, BIG_PX), board)
    canvas.paste(chalk, mask=strokes)
    return noisy(reduced(canvas), rng, 10)


def neon(scene: Scene, rng: random.Random) -> Image.Image:
    """Glowing tubes on a dark background."""
    dark = (rng.randint(8, 24), rng.randint(6, 18), rng.randint(18, 40))
    light = Image.new("RGB", (BIG_PX, BIG_PX), (0, 0, 0))
    pen = ImageDraw.Draw(light)
    for part in scene.parts:
        path = pixels(part.points)
        if part.width == 0:
            pen.polygon(path, fill=(0, 0, 0))
            path += path[:2]
        colour = vivid(vivid(shaded(scene.colours[part.tone], 1.15)))
        if part.tone == "dark":
            colour = (90, 200, 255)
        pen.line(path, fill=colour, width=5, joint="curve")
    glow = reduced(light).filter(ImageFilter.GaussianBlur(7 / FINE))
    glow = glow.resize(light.size, Image.Resampling.BILINEAR)
    canvas = ImageChops.add(Image.new("RGB", light.size, dark), glow)
    canvas = ImageChops.add(canvas, glow)
    return reduced(ImageChops.lighter(canvas, light))


def _lines(
    canvas: Image.Image,
    parts: Sequence[Part],
    rng: random.Random,
    *,
    inside: int,
    ink: tuple[int, int],
    width: tuple[int, int],
    wobble: float,
    passes: int,
) -> None:
    """Draw the outlines of parts on a grey canvas; front parts hide the lines behind them."""
    pen = ImageDraw.Draw(canvas)
    for part in parts:
        closed = part.width == 0
        if closed:
            pen.polygon(pixels(part.points), fill=inside)
        for _ in range(passes):
            path = _wobbly(part.points, rng, wobble, closed=closed)
            pen.line(path, fill=rng.randint(*ink), width=rng.randint(*width))


def _wobbly(
    points: tuple[Point, ...], rng: random.Random, amount: float, *, closed: bool
) -> list[Point]:
    """A hand-drawn line through the points, in canvas pixels; `amount` is in picture pixels."""
    path = pixels(points)
    if closed:
        path.append(path[0])
    waves = [(rng.uniform(0.02, 0.06), rng.uniform(0, 7), rng.uniform(0, 7)) for _ in range(2)]
    drawn = []
    walked = 0.0
    for i in range(len(path) - 1):
        (x0, y0), (x1, y1) = path[i], path[i + 1]
        length = math.hypot(x1 - x0, y1 - y0)
        steps = max(1, int(length / 12))
        for j in range(steps):
            at = walked + length * j / steps
            dx = sum(math.sin(at * speed + one) for speed, one, _ in waves) / 2
            dy = sum(math.sin(at * speed + two) for speed, _, two in waves) / 2
            x, y = x0 + (x1 - x0) * j / steps, y0 + (y1 - y0) * j / steps
            drawn.append((x + dx * amount * FINE, y + dy * amount * FINE))
        walked += length
    drawn.append(drawn[0] if closed else path[-1])
    return drawn


def _hatch(
    canvas: Image.Image, part: Part, rng: random.Random, ink: int, width: int, step: int
) -> None:
    """Fill a part with slanted lines."""
    left, top, right, bottom = bounds(part)
    high = bottom - top
    size = (right - left, high)
    mask = Image.new("L", size, 0)
    outline = [(x - left, y - top) for x, y in pixels(part.points)]
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    lines = Image.new("L", size, 0)
    pen = ImageDraw.Draw(lines)
    for x in range(-high, right - left, step):
        shake = rng.randint(-2, 2)
        pen.line((x + shake, high, x + high, 0), fill=255, width=width)
    canvas.paste(ink, (left, top), ImageChops.multiply(mask, lines))
