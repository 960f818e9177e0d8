"""The demo's report: one closed file, honest words, a chart whose labels can be read."""

from __future__ import annotations

import base64
import csv
import io
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedclip_edge.demo.report import (
    KINDS,
    LABEL_GAP_PX,
    NARROW_PX,
    THUMBNAIL_BYTES,
    THUMBNAIL_PX,
    WIDE_PX,
    Example,
    Line,
    chart_layout,
    choose_examples,
    conclusion,
    percent_ticks,
    remarks,
    round_ticks,
    spread,
    write_report,
)
from fedclip_edge.errors import DataError

HOSTILE = "<script>alert('x')</script>\"'&"


def device(domain: str, zero_shot: float, federated: float, **more: Any) -> dict[str, Any]:
    """An entry of summary.json."""
    return {
        "domain": domain,
        "pictures": {"train": 300, "test": 100},
        "encoded": 400,
        "skipped": 0,
        "accuracy": {
            "zero_shot": zero_shot,
            "local": federated - 0.01,
            "federated": federated,
            "zero_shot_all": zero_shot,
        },
        "accuracy_by_round": [zero_shot - 0.02, zero_shot, federated],
        "bytes_up_per_round": 16_512,
        "bytes_down_per_round": 33_087,
        "seconds": {"encode": 1.25, "train": 23.4, "wait": 5.67},
        **more,
    }


def run_summary(**more: Any) -> dict[str, Any]:
    """A run of two devices: their mean goes from 77.5 % to 81.5 %."""
    held_out = device("cartoon", 0.513, 0.54)
    del held_out["accuracy"]["local"]
    return {
        "version": "9.8.7",
        "world": "pictures in some/folder",
        "encoder": {"model": "ViT-B-32 of somebody", "encoder_id": "0123456789abcdef" * 4},
        "method": "fedclip",
        "options": {},
        "seed": 4242,
        "broker": "mosquitto 2.0",
        "rounds": 2,
        "rounds_closed": 2,
        "classes": ["car", "cup"],
        "devices": {
            "cam-01": device("photo", 0.88, 0.911),
            "cam-02": device("sketch", 0.67, 0.719),
        },
        "held_out": held_out,
        "seconds": {"prepare": 3.21, "federation": 45.6, "total": 48.81},
        **more,
    }


class Page(HTMLParser):
    """The tags, attributes and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.lasttag != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        """With single spaces, and no difference between kinds of them."""
        return " ".join("".join(self.texts).split())


def written(
    folder: Path, summary: Mapping[str, Any], examples: Sequence[Example] = ()
) -> tuple[str, Page]:
    path = folder / "report.html"
    write_report(path, summary, examples)
    assert [p.name for p in folder.iterdir() if "report" in p.name] == ["report.html"]
    html = path.read_text(encoding="utf-8")
    return html, Page(html)


def picture(path: Path, size: tuple[int, int] = (64, 64), **options: Any) -> Path:
    Image.effect_noise(size, 80).convert("RGB").save(path, **options)
    return path


# The page


def test_the_page_asks_the_network_for_nothing(tmp_path: Path) -> None:
    example = Example("cam-01", picture(tmp_path / "a.png"), "car", "cup", "car")
    html, page = written(tmp_path, run_summary(), [example])
    assert "//" not in re.sub(r"base64,[A-Za-z0-9+/=]*", "", html)
    assert "@import" not in html
    assert "url(" not in html
    assert page.tags["script"] == page.tags["iframe"] == page.tags["object"] == 0
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "srcset", "action", "xlink:href"):
            assert value.startswith("data:")
    policy = next(v for n, v in page.attributes if n == "content" and "default-src" in v)
    assert "default-src 'none'" in policy
    assert [t for t in page.tags if t == "link"] == ["link"]


def test_every_device_and_figure_is_there(tmp_path: Path) -> None:
    _, page = written(tmp_path, run_summary())
    for text in (
        "photo", "cam-01", "sketch", "cam-02", "cartoon",
        "88.0 %", "90.1 %", "91.1 %", "+3.1",
        "67.0 %", "70.9 %", "71.9 %", "+4.9",
        "51.3 %", "54.0 %", "+2.7",
        "77.5 %", "80.5 %", "81.5 %", "+4.0",
        "16.5", "33.1", "1.2", "23.4", "5.7", "300", "100", "400",
        "3.2 to prepare", "45.6", "48.8 in all",
        "fedclip", "4242", "0123456789abcdef", "mosquitto 2.0", "9.8.7", "ViT-B-32 of somebody",
        "the method's reference settings", "pictures in some/folder", "2 of 2 closed",
    ):  # fmt: skip
        assert text in page.text, text
    assert "toy" not in page.text
    assert "skipped" not in page.text


def test_the_drawn_world_says_that_it_is_a_toy(tmp_path: Path) -> None:
    _, page = written(tmp_path, run_summary(world="drawn world", options={"lr": 0.001, "n": True}))
    assert "toy world, drawn by a procedure" in page.text
    assert "lr = 0.001, n = True" in page.text


def test_names_from_outside_are_text(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    bad = tmp_path / f"{HOSTILE.replace('/', '')}.png"
    summary = run_summary(
        classes=[HOSTILE],
        world=HOSTILE,
        broker=HOSTILE,
        options={HOSTILE: HOSTILE},
        devices={HOSTILE: device(HOSTILE, 0.5, 0.4), "b": device(HOSTILE, 0.5, 0.6)},
        held_out=device(HOSTILE, 0.5, 0.4),
    )
    examples = [Example(d, path, HOSTILE, HOSTILE, HOSTILE) for d in (HOSTILE, "other")]
    html, page = written(tmp_path, summary, [*examples, Example("b", bad, "", "", "")])
    assert "<script" not in html
    assert page.tags["script"] == 0
    assert HOSTILE in page.text
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_what_nobody_measured_is_not_made_up(tmp_path: Path) -> None:
    silent = device("photo", 0.88, 0.9, bytes_up_per_round=None, bytes_down_per_round=None)
    lost = device("sketch", 0.6, 0.7, accuracy_by_round=[], seconds={}, encoded=None, skipped=3)
    lost["accuracy"] = {}
    summary = run_summary(devices={"a": silent, "b": lost}, held_out=None)
    _, page = written(tmp_path, summary)
    assert page.text.count("n/a") == 2 + 4 + 4 + 4  # traffic; accuracy; cost; the mean of the two
    assert "skipped" in page.text
    assert "held out" not in page.text
    assert conclusion(summary).startswith(
        "2 rounds, 2 devices: the mean over the 1 measured rose from 88.0 % to 90.0 %;"
    )
    for entry in (silent, lost):
        entry["accuracy"] = {"zero_shot": None, "federated": float("nan")}
        entry["accuracy_by_round"] = [None, None]
    _, page = written(tmp_path, summary)
    assert "the mean over the devices was not measured; no picture" in page.text


def test_sixty_pictures_stay_small_and_keep_nothing_of_the_camera(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "where-I-live"
    kept = {"exif": exif, "comment": b"where-I-live", "icc_profile": b"where-I-live" * 9}
    path = picture(tmp_path / "big.jpg", (1600, 1200), quality=95, **kept)
    assert b"where-I-live" in path.read_bytes()
    examples = [Example("cam-01", path, "car", "cup", "car")] * 60
    html, _ = written(tmp_path, run_summary(), examples)
    assert len(html.encode()) < 600_000
    found = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]*)"', html)
    assert len(found) == 60
    data = base64.b64decode(found[0])
    assert b"where" not in data
    assert len(data) <= THUMBNAIL_BYTES
    assert Image.open(io.BytesIO(data)).size == (THUMBNAIL_PX, THUMBNAIL_PX * 3 // 4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_every_mode_are_shown(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tif"
    Image.new(mode, (300, 2)).save(path)
    html, _ = written(tmp_path, run_summary(), [Example("cam-01", path, "car", "cup", "car")])
    assert html.count('src="data:image/') == 1


def test_an_unreadable_picture_is_left_out_and_named(tmp_path: Path) -> None:
    good = picture(tmp_path / "good.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:900])
    bomb = tmp_path / "bomb.png"
    Image.new("1", (12_000, 12_000)).save(bomb)  # above Pillow's limit, small on disk
    paths = [good, cut, bomb, tmp_path / "missing.png", tmp_path, Path("nul\0.png")]
    examples = [Example("cam-01", path, "car", "cup", "car") for path in paths]
    html, page = written(tmp_path, run_summary(), examples)
    assert html.count('src="data:image/') == 1
    named = page.text.split("could not be read as pictures: ")[1]
    for name in ("cut.png", "bomb.png", "missing.png", tmp_path.name):
        assert name in named
    assert "good.png" not in page.text
    assert str(tmp_path) not in page.text


def test_each_kind_is_named_in_words(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    guesses = {"fixed": "xc", "broken": "cx", "right": "cc", "still wrong": "xy"}
    examples = [Example("other", path, "c", g[0], g[1]) for g in guesses.values()]
    assert [example.kind for example in examples] == list(guesses)
    _, page = written(tmp_path, run_summary(), examples)
    assert "held out · 1 fixed, 1 broken, 1 right, 1 still wrong" in page.text
    for text in ("✓ fixed", "✗ broken", "✓ right", "✗ still wrong"):
        assert text in page.text


def test_importing_the_report_loads_no_heavy_library() -> None:
    check = (
        "import sys, fedclip_edge.demo.report; "
        "print(sorted({'torch', 'onnxruntime', 'open_clip', 'paho', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The words


def test_conclusion() -> None:
    assert conclusion(run_summary()) == (
        "2 rounds, 2 devices: the mean over the devices rose from 77.5 % to 81.5 %, "
        "the held-out style cartoon from 51.3 % to 54.0 %; no picture left its device."
    )


def test_conclusion_of_one_device() -> None:
    summary = run_summary(rounds=1, rounds_closed=1, held_out=None)
    del summary["devices"]["cam-02"]
    assert conclusion(summary) == (
        "1 round, 1 device: the accuracy rose from 88.0 % to 91.1 %; no picture left its device."
    )


def test_a_loss_is_called_a_loss() -> None:
    summary = run_summary(
        rounds_closed=1,
        devices={"a": device("photo", 0.9, 0.85), "b": device("sketch", 0.6, 0.61)},
        held_out=device("cartoon", 0.5, 0.5001),
    )
    assert conclusion(summary) == (
        "1 of 2 rounds, 2 devices: the mean over the devices fell from 75.0 % to 73.0 %, "
        "the held-out style cartoon stayed at 50.0 %; no picture left its device."
    )
    said = remarks(summary)
    assert said[0] == "Adapting made it worse on photo (−5.0 points)."
    summary["held_out"]["accuracy"]["federated"] = 0.4
    assert "the held-out cartoon (−10.0 points)" in remarks(summary)[0]


def test_remarks_compare_with_training_alone() -> None:
    first = "Each trained alone, without the others, the devices reach "
    assert remarks(run_summary())[0] == first + (
        "80.5 % in the mean: 1.0 points less than together."
    )
    summary = run_summary()
    for entry in summary["devices"].values():
        entry["accuracy"]["local"] = entry["accuracy"]["federated"]
    assert remarks(summary)[0] == first + "81.5 % in the mean: as much as together."
    summary["devices"]["cam-01"]["accuracy"]["local"] += 0.04
    assert remarks(summary)[0] == first + "83.5 % in the mean: 2.0 points more than together."
    for entry in summary["devices"].values():
        del entry["accuracy"]["local"]
    assert len(remarks(summary)) == 1


def test_remarks_say_what_a_picture_weighs() -> None:
    summary = run_summary()
    assert "tested on 100 pictures, and one picture moves its figure by 1.0" in remarks(summary)[-1]
    summary["devices"]["cam-01"]["pictures"]["test"] = 40
    assert "on 40 to 100 pictures" in remarks(summary)[-1]
    assert "by 1.0 to 2.5 points" in remarks(summary)[-1]


# The chart

_fractions = st.lists(st.none() | st.floats(0, 1), max_size=40)
_lines = st.builds(
    Line, st.text(max_size=40), _fractions, st.none() | st.floats(0, 1), held_out=st.booleans()
)


@given(st.lists(_lines, max_size=12), st.booleans())
def test_everything_stands_inside_the_view_box(lines: list[Line], wide: bool) -> None:
    size, columns = (WIDE_PX, 18) if wide else (NARROW_PX, 11)
    chart = chart_layout(lines, *size, name_columns=columns, figures=wide)
    assert chart.width_px == size[0]
    assert chart.height_px >= size[1]
    assert chart.right_px - chart.left_px > size[0] / 2
    left, right = chart.left_px - 0.1, chart.right_px + 0.1
    top, bottom = chart.top_px - 0.1, chart.bottom_px + 0.1
    assert all(left <= tick.at_px <= right for tick in chart.x_ticks)
    assert all(top <= tick.at_px <= bottom for tick in chart.y_ticks)
    with_figures = [line for line in lines if any(v is not None for v in line.by_round)]
    assert len(chart.curves) == len(with_figures)
    for curve in chart.curves:
        points = re.findall(r"[ML]([\d.]+) ([\d.]+)", curve.path)
        assert points
        assert all(left <= float(x) <= right and top <= float(y) <= bottom for x, y in points)
        assert curve.zero_shot_y_px is None or top <= curve.zero_shot_y_px <= bottom
        assert top <= curve.label_y_px <= bottom
        assert len(curve.label) <= columns + len(" 100.0 %") * wide
    labels = sorted(curve.label_y_px for curve in chart.curves)
    assert all(b - a >= LABEL_GAP_PX - 0.2 for a, b in pairwise(labels))


def test_a_line_is_drawn_where_its_figures_are() -> None:
    lines = [
        Line("a", [0.2, None, 0.4, 0.6], 0.3),
        Line("nobody", [None], 0.9),
        Line("b", [0.6], 0.6, held_out=True),
        Line("c", [0.5], None),
    ]
    chart = chart_layout(lines, 500, 300, name_columns=10, figures=True)
    a, b, c = chart.curves
    assert [tick.text for tick in chart.y_ticks] == ["20 %", "30 %", "40 %", "50 %", "60 %"]
    assert [tick.text for tick in chart.x_ticks] == ["0", "1", "2", "3"]
    assert (a.label, b.label, c.label) == ("a 60.0 %", "b 60.0 %", "c 50.0 %")
    assert (a.colour, b.held_out, c.colour, c.zero_shot_y_px) == (0, True, 1, None)
    assert a.title == "a: zero-shot 30.0 %, 60.0 % after round 3"
    left, right, top, bottom = chart.left_px, chart.right_px, chart.top_px, chart.bottom_px
    assert a.end_px == (right, top)
    assert b.end_px == (left, top)
    assert a.path.startswith(f"M{left:g} {bottom:g}h0M")  # round 1 is missing: no line across it
    assert a.path.endswith(f"L{right:g} {top:g}")
    assert a.path.count("L") == 1


def test_long_and_wide_names_are_cut() -> None:
    lines = [Line("x" * 50, [0.5], 0.5), Line("画" * 50, [0.5], 0.5)]
    chart = chart_layout(lines, *NARROW_PX, name_columns=11, figures=False)
    assert [curve.label for curve in chart.curves] == ["x" * 10 + "…", "画" * 5 + "…"]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([51.3, 90.9], [50, 60, 70, 80, 90, 100]),
        ([77.2, 80.9], [77, 78, 79, 80, 81]),
        ([70.0, 80.0], [70, 72, 74, 76, 78, 80]),
        ([0.0, 100.0], [0, 20, 40, 60, 80, 100]),
        ([100.0], [99, 100]),
        ([0.0], [0, 1]),
        ([56.99999999], [57, 58]),
        ([], [0, 20, 40, 60, 80, 100]),
    ],
)
def test_percent_ticks(values: list[float], ticks: list[int]) -> None:
    assert percent_ticks(values) == ticks


@pytest.mark.parametrize(
    ("rounds", "most", "ticks"),
    [
        (30, 8, [0, 5, 10, 15, 20, 25, 30]),
        (30, 4, [0, 10, 20, 30]),
        (0, 8, [0]),
        (1, 8, [0, 1]),
        (52, 8, [0, 10, 20, 30, 40, 52]),
        (1000, 5, [0, 200, 400, 600, 800, 1000]),
    ],
)
def test_round_ticks(rounds: int, most: int, ticks: list[int]) -> None:
    assert round_ticks(rounds, most) == ticks


@given(st.lists(st.floats(0, 300), max_size=15))
def test_spread_keeps_apart_and_in_order(wanted: list[float]) -> None:
    places = spread(wanted, 17, 0, 300)
    assert all(-1e-6 <= place <= 300 + 1e-6 for place in places)
    ordered = sorted(places)
    assert all(b - a >= 17 - 1e-6 for a, b in pairwise(ordered))
    for i, a in enumerate(wanted):
        for j, b in enumerate(wanted):
            assert a >= b or places[i] < places[j]


def test_spread_moves_no_more_than_it_must() -> None:
    assert spread([10, 50, 90], 17, 0, 100) == [10, 50, 90]
    assert spread([50, 50], 10, 0, 100) == [45, 55]
    assert spread([99, 100], 10, 0, 100) == [90, 100]


# The examples

_GUESSES = {"fixed": "no", "broken": "on", "right": "oo", "still wrong": "nn"}  # o is the label


def table(path: Path, counts: Mapping[str, int], *, backwards: bool = False) -> Path:
    rows = [
        [f"{kind}-{i}.png", "o", _GUESSES[kind][0], _GUESSES[kind][1], "o"]
        for kind, count in counts.items()
        for i in range(count)
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["picture", "label", "zero_shot", "federated", "local"])
        out.writerows(reversed(rows) if backwards else rows)
    return path


def kinds(examples: Sequence[Example]) -> dict[str, int]:
    return dict(Counter(str(example.kind) for example in examples))


@pytest.mark.parametrize(
    ("counts", "seats", "shares"),
    [
        ((10, 5, 70, 15), 20, (2, 1, 14, 3)),
        ((1, 1, 997, 1), 12, (1, 1, 9, 1)),  # one at least of each
        ((0, 2, 98, 0), 10, (0, 1, 9, 0)),
        ((10, 20, 60, 10), 3, (0, 1, 2, 0)),  # no room for one of each: the frequent ones
        ((1, 0, 2, 0), 10, (1, 0, 2, 0)),  # fewer than asked for
        ((3, 3, 3, 3), 0, (0, 0, 0, 0)),
        ((0, 0, 0, 0), 5, (0, 0, 0, 0)),
    ],
)
def test_examples_are_in_proportion(
    tmp_path: Path, counts: tuple[int, ...], seats: int, shares: tuple[int, ...]
) -> None:
    path = table(tmp_path / "p.csv", dict(zip(KINDS, counts, strict=True)))
    chosen = choose_examples({"cam-01": path}, seats, seed=0)
    wanted = {kind: share for kind, share in zip(KINDS, shares, strict=True) if share}
    assert kinds(chosen) == wanted
    assert len({example.picture for example in chosen}) == len(chosen)
    assert [example.kind for example in chosen] == sorted(
        (example.kind for example in chosen), key=KINDS.index
    )


@given(st.tuples(*[st.integers(0, 60)] * 4), st.integers(4, 40))
def test_no_kind_is_favoured(
    tmp_path_factory: pytest.TempPathFactory, counts: tuple[int, ...], seats: int
) -> None:
    path = table(tmp_path_factory.mktemp("p") / "p.csv", dict(zip(KINDS, counts, strict=True)))
    shown = kinds(choose_examples({"d": path}, seats, seed=0))
    total = sum(counts)
    assert sum(shown.values()) == min(seats, total)
    for kind, count in zip(KINDS, counts, strict=True):
        due = min(seats, total) * count / max(total, 1)
        assert shown.get(kind, 0) == 0 if count == 0 else shown[kind] >= 1
        assert shown.get(kind, 0) <= max(1, due + 1)


def test_examples_follow_the_seed_alone(tmp_path: Path) -> None:
    counts = {"fixed": 30, "broken": 30, "right": 30, "still wrong": 30}
    one = {"a": table(tmp_path / "a.csv", counts), "b": table(tmp_path / "b.csv", counts)}
    chosen = choose_examples(one, 12, seed=1)
    assert choose_examples(one, 12, seed=1) == chosen
    assert choose_examples(one, 12, seed=2) != chosen
    table(tmp_path / "a.csv", counts, backwards=True)
    again = choose_examples(dict(reversed(one.items())), 12, seed=1)
    assert [e for d in "ab" for e in again if e.device == d] == chosen
    of = {d: {e.picture for e in chosen if e.device == d} for d in "ab"}
    assert of["a"] != of["b"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no column 'picture'"),
        (b"picture,label,zero_shot\na,b,c\n", "no column 'federated'"),
        (b"picture,label,zero_shot,federated\na,b,c\n", "line 2 is not complete"),
        (b"picture,label,zero_shot,federated\na,b,\xff,d\n", "no table of predictions"),
        (b'picture,label,zero_shot,federated\n"a,b,c,d\n', "no table of predictions"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "predictions.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        choose_examples({"cam-01": path}, 3, seed=0)
    assert str(path) in str(caught.value)
