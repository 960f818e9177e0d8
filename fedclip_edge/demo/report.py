"""The report of a demo run: one HTML file that holds everything it shows.

Laws: the page asks the network for nothing and runs no script; every text in it is escaped by the
template; a figure that nobody measured reads "n/a"; a loss is called a loss. Pictures are drawn
anew before they are embedded, so nothing that a camera noted in a file travels with the report.
"""

from __future__ import annotations

import base64
import csv
import io
import math
import random
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from fedclip_edge.errors import DataError

TEMPLATE = Path(__file__).resolve().with_name("report.html.j2")

Kind = Literal["fixed", "broken", "right", "still wrong"]
KINDS: tuple[Kind, ...] = ("fixed", "broken", "right", "still wrong")
_COLUMNS = ("picture", "label", "zero_shot", "federated")

THUMBNAIL_PX = 96
THUMBNAIL_BYTES = 6_000  # 60 of them in base64 are 480 kB, which leaves the page below 600 kB

LABEL_GAP_PX = 17.0  # between the middles of two labels of 13 px
_LABEL_OFFSET_PX = 24.0  # from the end of the axis to a label; the leader line is in between
_CHARACTER_PX = 7.2  # of 13 px text in the system fonts, rather too wide than too narrow
WIDE_PX, NARROW_PX = (880, 400), (360, 330)  # charts for a desk or paper, and for a phone


@dataclass(frozen=True)
class Example:
    """One test picture, and what was predicted of it: before is zero-shot, after federated."""

    device: str
    picture: Path
    label: str
    before: str
    after: str

    @property
    def kind(self) -> Kind:
        """What adapting did to it."""
        if self.after == self.label:
            return "right" if self.before == self.label else "fixed"
        return "broken" if self.before == self.label else "still wrong"


@dataclass(frozen=True)
class Line:
    """Accuracy of one device as fractions: after round 0, 1, ..., and before any adapting."""

    name: str
    by_round: Sequence[float | None]
    zero_shot: float | None
    held_out: bool = False


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where along it, and what it reads."""

    at_px: float
    text: str


@dataclass(frozen=True)
class Curve:
    """A line of the chart, in the chart's pixels."""

    title: str
    label: str
    label_y_px: float
    path: str  # for the d of an SVG path
    end_px: tuple[float, float]
    zero_shot_y_px: float | None
    colour: int  # counts the devices; the held-out line has a colour of its own
    held_out: bool


@dataclass(frozen=True)
class Chart:
    """Where everything stands in a view box of width x height; the plot is inside the four edges.

    Labels start at `label_x_px`, to the right of the plot.
    """

    width_px: float
    height_px: float
    left_px: float
    top_px: float
    right_px: float
    bottom_px: float
    label_x_px: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]


def choose_examples(predictions: Mapping[str, Path], per_device: int, seed: int) -> list[Example]:
    """At most `per_device` test pictures of each device, drawn by `seed`; fixed ones first.

    `predictions` maps a device to its predictions.csv with the columns picture, label, zero_shot
    and federated. Of each kind as many as its share in the whole file asks for, at least one where
    it occurs and there is room for every kind that does.

    Raises DataError, naming the file, where one is missing or is no such table.
    """
    chosen = []
    for device, path in predictions.items():
        examples = _read_predictions(device, path)
        kinds = {kind: [e for e in examples if e.kind == kind] for kind in KINDS}
        seats = _seats([len(kinds[kind]) for kind in KINDS], per_device)
        for kind, count in zip(KINDS, seats, strict=True):
            chosen += random.Random(f"examples/{seed}/{device}/{kind}").sample(kinds[kind], count)
    return chosen


def write_report(path: Path, summary: Mapping[str, Any], examples: Sequence[Example]) -> None:
    """Writes the page under a temporary name and renames it.

    `summary` is the content of summary.json. Examples of a device that it does not list are of
    the held-out one. A picture that cannot be read is left out, and named on the page.
    """
    names = _names(summary)
    cards: dict[str, list[tuple[Example, str]]] = {}
    unreadable = []
    for example in examples:
        thumbnail = _thumbnail(example.picture)
        if thumbnail is None:
            unreadable.append(example.picture.name)
        else:
            cards.setdefault(example.device, []).append((example, thumbnail))
    lines = _lines(summary, names)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["difference"] = difference
    environment.filters.update(
        percent=percent, points=points, kilobytes=kilobytes, decimal=decimal, whole=whole
    )
    page = environment.get_template(TEMPLATE.name).render(
        summary=summary,
        names=names,
        conclusion=conclusion(summary),
        remarks=remarks(summary),
        means={kind: _column_mean(summary, kind) for kind in ("zero_shot", "local", "federated")},
        charts=[
            ("wide", chart_layout(lines, *WIDE_PX, name_columns=18, figures=True)),
            ("narrow", chart_layout(lines, *NARROW_PX, name_columns=11, figures=False)),
        ],
        cards=cards,
        kinds=KINDS,
        unreadable=unreadable,
    )
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(page, encoding="utf-8", errors="replace")  # a file name can be any bytes
    partial.replace(path)


# What the run comes to, in words


def conclusion(summary: Mapping[str, Any]) -> str:
    """The run in one sentence with its figures; it says "fell" where something got worse."""
    rounds, closed, count = summary["rounds"], summary["rounds_closed"], len(summary["devices"])
    done = f"{rounds}" if closed == rounds else f"{closed} of {rounds}"
    start = f"{done} round{'s' * (rounds != 1)}, {count} device{'s' * (count != 1)}"
    pairs = _pairs(summary, "zero_shot", "federated")
    over = "the devices" if len(pairs) in (0, count) else f"the {len(pairs)} measured"
    what = "the accuracy" if count == 1 else f"the mean over {over}"
    before, after = _mean([a for a, _ in pairs]), _mean([b for _, b in pairs])
    verb, figures = _change(before, after)
    text = f"{what} {verb}{figures}"
    if held_out := summary.get("held_out"):
        accuracy = held_out["accuracy"]
        own, more = _change(accuracy.get("zero_shot"), accuracy.get("federated"))
        # The verb once where it is the same: "rose from 1 to 2, the held-out from 3 to 4".
        said = "" if own == verb and more else f" {own}"
        text += f", the held-out style {held_out['domain']}{said}{more}"
    return f"{start}: {text}; no picture left its device."


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """What a reader must know to weigh the conclusion, a sentence each."""
    names = _names(summary)
    entries = [(names[device], entry) for device, entry in summary["devices"].items()]
    if held_out := summary.get("held_out"):
        entries.append((f"the held-out {held_out['domain']}", held_out))
    said = []
    worse = [
        f"{name} ({points(gain)} points)"
        for name, entry in entries
        if (gain := difference(entry["accuracy"], "federated", "zero_shot")) is not None
        and round(100 * gain, 1) < 0
    ]
    if worse:
        said.append(f"Adapting made it worse on {', '.join(worse)}.")
    pairs = _pairs(summary, "local", "federated")
    means = {"local": _mean([a for a, _ in pairs]), "federated": _mean([b for _, b in pairs])}
    if (gain := difference(means, "federated", "local")) is not None:
        apart = points(gain).lstrip("+\N{MINUS SIGN}")
        compared = f"{apart} points {'less' if gain > 0 else 'more'} than"
        said.append(
            "Each trained alone, without the others, the devices reach "
            f"{percent(means['local'])} in the mean: "
            f"{'as much as' if apart == '0.0' else compared} together."
        )
    tests = [n for _, entry in entries if (n := _number(entry["pictures"].get("test")))]
    if tests:
        count = " to ".join(dict.fromkeys(whole(n) for n in (min(tests), max(tests))))
        step = " to ".join(dict.fromkeys(f"{100 / n:.1f}" for n in (max(tests), min(tests))))
        said.append(
            f"Each style is tested on {count} pictures, and one picture moves its figure by "
            f"{step} points: a difference of a few pictures may be chance."
        )
    return said


def _change(before: object, after: object) -> tuple[str, str]:
    """A verb, and the figures that follow it."""
    old, new = _number(before), _number(after)
    if old is None or new is None:
        return "was not measured", ""
    if percent(old) == percent(new):
        return "stayed", f" at {percent(new)}"
    return "rose" if new > old else "fell", f" from {percent(old)} to {percent(new)}"


def _names(summary: Mapping[str, Any]) -> dict[str, str]:
    """What to call each device: its style, and its id too where several have that style."""
    domains = {device: str(entry["domain"]) for device, entry in summary["devices"].items()}
    known = list(domains.values())
    return {
        device: domain if known.count(domain) == 1 else f"{domain} ({device})"
        for device, domain in domains.items()
    }


def _pairs(summary: Mapping[str, Any], one: str, other: str) -> list[tuple[float, float]]:
    """Two kinds of accuracy, of the devices that have both: else their means do not compare."""
    accuracies = [entry["accuracy"] for entry in summary["devices"].values()]
    both = [(_number(accuracy.get(one)), _number(accuracy.get(other))) for accuracy in accuracies]
    return [(a, b) for a, b in both if a is not None and b is not None]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _column_mean(summary: Mapping[str, Any], kind: str) -> float | None:
    """Over all devices; None where one of them has no such figure."""
    pairs = _pairs(summary, kind, kind)
    return _mean([a for a, _ in pairs]) if len(pairs) == len(summary["devices"]) else None


# Figures as text


def _number(value: object) -> float | None:
    """The value where it is a finite number."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def difference(accuracy: Mapping[str, Any], after: str, before: str) -> float | None:
    """One accuracy less another, of the figures as shown; None where one is missing.

    So a reader who subtracts what stands on the page finds the difference that stands there.
    """
    new, old = _number(accuracy.get(after)), _number(accuracy.get(before))
    if new is None or old is None:
        return None
    return (round(100 * new, 1) - round(100 * old, 1)) / 100


def percent(value: object) -> str:
    """A fraction as "77.2 %"."""
    number = _number(value)
    return "n/a" if number is None else f"{100 * number:.1f} %"


def points(value: object) -> str:
    """A difference of fractions as "+3.7" points."""
    number = _number(value)
    if number is None:
        return "n/a"
    text = f"{100 * number:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\N{MINUS SIGN}")


def whole(value: object) -> str:
    """A count as "1,234"."""
    number = _number(value)
    return "n/a" if number is None else f"{number:,.0f}"


def decimal(value: object) -> str:
    """A quantity with one decimal: "1,204.5"."""
    number = _number(value)
    return "n/a" if number is None else f"{number:,.1f}"


def kilobytes(value: object) -> str:
    """Bytes in thousands: "16.5"."""
    number = _number(value)
    return decimal(None if number is None else number / 1000)


# The chart


def chart_layout(
    lines: Sequence[Line],
    width_px: float,
    height_px: float,
    *,
    name_columns: int,
    figures: bool,
) -> Chart:
    """Places lines, ticks and labels; a pure function.

    Names are cut to `name_columns` characters; `figures` puts the last accuracy after each. The
    chart gets higher than `height_px` where its labels would not fit. A line without a figure is
    left out.
    """
    known = [
        [(x, v) for x, value in enumerate(line.by_round) if (v := _number(value)) is not None]
        for line in lines
    ]
    shown = [i for i, at in enumerate(known) if at]
    labels = [
        _cut(line.name, name_columns) + (f" {percent(at[-1][1])}" if figures and at else "")
        for line, at in zip(lines, known, strict=True)
    ]
    left, top = 46.0, 30.0
    label_x = width_px - max((_CHARACTER_PX * _columns(labels[i]) for i in shown), default=0.0)
    right = label_x - _LABEL_OFFSET_PX
    height = max(height_px, top + LABEL_GAP_PX * len(shown) + 46.0)
    bottom = height - 46.0

    rounds = max([0, *(len(line.by_round) - 1 for line in lines)])
    values = [100 * value for at in known for _, value in at]
    values += [100 * v for i in shown if (v := _number(lines[i].zero_shot)) is not None]
    y_ticks = percent_ticks(values)
    low, high = y_ticks[0], y_ticks[-1]

    def place(x: float, fraction: float) -> tuple[float, float]:
        across, up = x / max(rounds, 1), (100 * fraction - low) / (high - low)
        return round(left + across * (right - left), 1), round(bottom - up * (bottom - top), 1)

    ends = [place(*known[i][-1]) for i in shown]
    heights = spread([y for _, y in ends], LABEL_GAP_PX, top, bottom)
    colours = iter(range(len(lines)))
    curves = []
    for i, end, label_y in zip(shown, ends, heights, strict=True):
        line, zero_shot = lines[i], _number(lines[i].zero_shot)
        curves.append(
            Curve(
                title=f"{line.name}: zero-shot {percent(zero_shot)}, "
                f"{percent(known[i][-1][1])} after round {known[i][-1][0]}",
                label=labels[i],
                label_y_px=round(label_y, 1),
                path=_path([(x, *place(x, value)) for x, value in known[i]]),
                end_px=end,
                zero_shot_y_px=None if zero_shot is None else place(0, zero_shot)[1],
                colour=-1 if line.held_out else next(colours),
                held_out=line.held_out,
            )
        )
    return Chart(
        width_px=width_px,
        height_px=height,
        left_px=left,
        top_px=top,
        right_px=round(right, 1),
        bottom_px=bottom,
        label_x_px=round(label_x, 1),
        x_ticks=tuple(
            Tick(place(x, 0)[0], str(x)) for x in round_ticks(rounds, int((right - left) // 50))
        ),
        y_ticks=tuple(Tick(place(0, y / 100)[1], f"{y} %") for y in y_ticks),
        curves=tuple(curves),
    )


def percent_ticks(values: Sequence[float]) -> list[int]:
    """Two to seven round percentages, the first and the last of which enclose all values."""
    least, most = (round(edge, 6) for edge in (min(values, default=0), max(values, default=100)))
    for step in (1, 2, 5, 10, 20):
        first, last = math.floor(least / step), math.ceil(most / step)
        if first == last:  # a flat line on a tick
            first, last = (first, last + 1) if step * last < 100 else (first - 1, last)
        if last - first <= 6:
            break
    return list(range(step * first, step * last + 1, step))


def round_ticks(rounds: int, most: int) -> list[int]:
    """Round numbers from 0 to exactly `rounds`, about `most` of them."""
    steps = (f * 10**power for power in range(len(str(rounds)) + 1) for f in (1, 2, 5))
    step = next(step for step in steps if rounds / step <= max(most, 2))
    ticks = list(range(0, rounds + 1, step))
    if ticks[-1] != rounds:
        if len(ticks) > 1 and rounds - ticks[-1] < step / 2:
            ticks.pop()  # it would touch the last one
        ticks.append(rounds)
    return ticks


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places nearest to those wanted (least squares), `gap` apart or more, within low..high.

    Neighbours that are too near are pooled and share their mean, which is isotonic regression of
    the places less what the gaps take up. The gaps must fit between low and high.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    pools: list[tuple[float, int]] = []  # sum and number of what was pooled
    for rank, i in enumerate(order):
        pool = (wanted[i] - rank * gap, 1)
        while pools and pools[-1][0] / pools[-1][1] >= pool[0] / pool[1]:
            before = pools.pop()
            pool = (before[0] + pool[0], before[1] + pool[1])
        pools.append(pool)
    last = high - gap * (len(wanted) - 1)
    places = [min(max(total / n, low), last) for total, n in pools for _ in range(n)]
    result = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        result[i] = places[rank] + rank * gap
    return result


def _lines(summary: Mapping[str, Any], names: Mapping[str, str]) -> list[Line]:
    lines = [
        Line(names[device], entry["accuracy_by_round"], entry["accuracy"].get("zero_shot"))
        for device, entry in summary["devices"].items()
    ]
    if held_out := summary.get("held_out"):
        zero_shot = held_out["accuracy"].get("zero_shot")
        lines.append(Line(held_out["domain"], held_out["accuracy_by_round"], zero_shot, True))
    return lines


def _path(at: Sequence[tuple[int, float, float]]) -> str:
    """An SVG path through (round, x, y); it breaks where rounds are missing."""
    steps, before = [], None
    for x, x_px, y_px in at:
        # A line of no length shows a lone point, as a dot.
        steps.append(f"L{x_px:g} {y_px:g}" if before == x - 1 else f"M{x_px:g} {y_px:g}h0")
        before = x
    return "".join(steps)


def _columns(text: str) -> int:
    """How many letters of Latin the text is wide."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _cut(text: str, columns: int) -> str:
    if _columns(text) <= columns:
        return text
    while _columns(text) > columns - 1:
        text = text[:-1]
    return f"{text}\N{HORIZONTAL ELLIPSIS}"


# The examples


def _read_predictions(device: str, path: Path) -> list[Example]:
    """The rows in the order of their pictures, so that a choice does not hang on the file's."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file, strict=True)
            if missing := [name for name in _COLUMNS if name not in (rows.fieldnames or ())]:
                raise DataError(f"{path} is no table of predictions: no column {missing[0]!r}")
            found = []
            for row in rows:
                picture, label, before, after = (row[name] for name in _COLUMNS)
                if not (picture and label and before and after):
                    raise DataError(f"{path}: line {rows.line_num} is not complete")
                found.append(Example(device, Path(picture), label, before, after))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no table of predictions: {error}") from error
    return sorted(found, key=lambda example: str(example.picture))


def _seats(counts: Sequence[int], seats: int) -> list[int]:
    """Shares `seats` out in proportion to `counts`; one to each that is not 0, if there is room."""
    seats = max(0, min(seats, sum(counts)))
    occurring = [int(count > 0) for count in counts]
    given = occurring if sum(occurring) <= seats else [0] * len(counts)
    due = [seats * count / max(sum(counts), 1) for count in counts]
    while sum(given) < seats:
        short = [d - g if g < count else -math.inf
                 for d, g, count in zip(due, given, counts, strict=True)]  # fmt: skip
        given[short.index(max(short))] += 1
    return given


def _thumbnail(path: Path) -> str | None:
    """The picture as a data: URI, small; None where it cannot be read.

    Turned neither way by EXIF and without transparency, as the encoder sees it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                opened.draft("RGB", (2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
                picture = opened.convert("RGBA" if opened.mode == "P" else "RGB").convert("RGB")
    except Exception:  # noqa: BLE001 - a broken file can fail anywhere inside Pillow's decoders
        return None
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    bare = Image.new("RGB", picture.size)  # has no comment, profile or place of the picture's
    bare.paste(picture)
    png = _encoded(bare, "PNG", optimize=True)
    for quality in (82, 65, 40):
        jpeg = _encoded(bare, "JPEG", quality=quality, optimize=True)
        if min(len(jpeg), len(png)) <= THUMBNAIL_BYTES:
            break
    kind, data = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
