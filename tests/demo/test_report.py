"""The demo's report: one self-contained file with correct claims."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, measured
from PIL import Image

from fedclip_edge.demo.examples import Example
from fedclip_edge.demo.report import write_report
from fedclip_edge.reporting.run_words import conclusion, remarks

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
    """Summary of a run with two devices whose mean accuracy rises from 77.5 % to 81.5 %."""
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
    """Collects the tags, attributes and visible text of a page."""

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
        """The visible text, with every run of white space replaced by one space."""
        return " ".join("".join(self.texts).split())


def written(
    folder: Path, summary: Mapping[str, Any], examples: Sequence[Example] = ()
) -> tuple[str, Page]:
    path = folder / "report.html"
    write_report(path, summary, examples)
    assert [p.name for p in folder.iterdir() if "report" in p.name] == ["report.html"]
    html = path.read_text(encoding="utf-8")
    return html, Page(html)


def picture(path: Path, size: tuple[int, int] = (64, 64)) -> Path:
    Image.effect_noise(size, 80).convert("RGB").save(path)
    return path


# The page.


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed; it measures the page")
@pytest.mark.parametrize("width_px", [1200, 800, 390])
def test_the_page_does_not_scroll_sideways(width_px: int, tmp_path: Path) -> None:
    names = ("photo", "warehouse_camera_north_entrance", "x" * 60, "cartoon drawings of 2019")
    more = {"federated_f1": 0.123, "zero_shot_ece": 0.234, "federated_ece": 0.345}
    devices = {f"cam-{n}": device(name, 0.5, 0.6 + n / 10) for n, name in enumerate(names)}
    for entry in devices.values():
        entry["accuracy"] |= more
    path = tmp_path / "report.html"
    write_report(path, run_summary(devices=devices), [])
    found = measured(path, width_px)
    assert found["width"] == width_px
    assert found["wide"] == []
    assert found["cut"] == []


def test_a_device_has_one_colour_and_zero_shot_is_grey(tmp_path: Path) -> None:
    html, _ = written(tmp_path, run_summary())
    tables, charts = html[html.index("<table") :], html[: html.index("<table")]
    swatches = ["s0", "s1", "s-held-out"]
    assert re.findall(r'class="(s\d|s-\S+)"', tables) == 2 * swatches
    assert set(re.findall(r'class="zero (\S+)"', charts)) == {"s-zero-shot"}


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
        "the method's default options", "pictures in some/folder", "2 of 2 closed",
    ):  # fmt: skip
        assert text in page.text, text
    assert "toy" not in page.text
    assert "skipped" not in page.text


def test_the_drawn_world_says_that_it_is_a_toy(tmp_path: Path) -> None:
    _, page = written(tmp_path, run_summary(world="drawn world", options={"lr": 0.001, "n": True}))
    assert "toy world, drawn by a program" in page.text
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
        "2 rounds, 2 devices: the mean accuracy of the devices (1 of 2 measured) rose from 88.0 % to 90.0 %;"
    )
    for entry in (silent, lost):
        entry["accuracy"] = {"zero_shot": None, "federated": float("nan")}
        entry["accuracy_by_round"] = [None, None]
    _, page = written(tmp_path, summary)
    assert "the mean accuracy of the devices was not measured; no picture" in page.text


def test_sixty_pictures_stay_small(tmp_path: Path) -> None:
    path = picture(tmp_path / "big.jpg", (1600, 1200))
    examples = [Example("cam-01", path, "car", "cup", "car")] * 60
    html, _ = written(tmp_path, run_summary(), examples)
    assert len(html.encode()) < 600_000
    assert len(re.findall(r'src="data:image/(?:png|jpeg);base64,[^"]+"', html)) == 60


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


def test_f1_and_calibration_stand_in_the_table_where_they_were_measured(tmp_path: Path) -> None:
    _, plain = written(tmp_path, run_summary())
    assert "macro F1" not in plain.text
    summary = run_summary()
    for device in summary["devices"].values():
        device["accuracy"] |= {
            "federated_f1": 0.123, "zero_shot_ece": 0.234, "federated_ece": 0.345
        }  # fmt: skip
    _, shown = written(tmp_path, summary)
    for text in ("macro F1", "12.3 %", "23.4 %", "34.5 %"):
        assert text in shown.text


def test_importing_the_report_loads_no_heavy_library() -> None:
    check = (
        "import sys, fedclip_edge.demo.report; "
        "print(sorted({'torch', 'onnxruntime', 'open_clip', 'paho', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The sentences.


def test_conclusion() -> None:
    assert conclusion(run_summary()) == (
        "2 rounds, 2 devices: the mean accuracy of the devices rose from 77.5 % to 81.5 %, "
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
        "1 of 2 rounds, 2 devices: the mean accuracy of the devices fell from 75.0 % to 73.0 %, "
        "the held-out style cartoon stayed at 50.0 %; no picture left its device."
    )
    said = remarks(summary)
    assert said[0] == "Training made the accuracy worse on photo (−5.0 points)."
    summary["held_out"]["accuracy"]["federated"] = 0.4
    assert "the held-out cartoon (−10.0 points)" in remarks(summary)[0]


def test_remarks_compare_with_training_alone() -> None:
    first = "If each device trains alone, without the others, their mean accuracy is "
    assert remarks(run_summary())[0] == first + (
        "80.5 %: 1.0 points less than with the federated model."
    )
    summary = run_summary()
    for entry in summary["devices"].values():
        entry["accuracy"]["local"] = entry["accuracy"]["federated"]
    assert remarks(summary)[0].startswith(
        first + "81.5 %: the same as with the federated model. A model trained alone is tested on"
    )
    summary["devices"]["cam-01"]["accuracy"]["local"] += 0.04
    assert remarks(summary)[0] == first + (
        "83.5 %: 2.0 points more than with the federated model. A model trained alone is tested on "
        "its own device's pictures only; it has learned nothing from the other devices. The method "
        "FedCLIP changes CLIP little; --method auto or gda often gains more."
    )
    summary["method"] = "linear"
    assert remarks(summary)[0].endswith("it has learned nothing from the other devices.")
    for entry in summary["devices"].values():
        del entry["accuracy"]["local"]
    assert len(remarks(summary)) == 1


def test_remarks_say_what_a_picture_weighs() -> None:
    summary = run_summary()
    assert "tested on 100 pictures. One picture changes its accuracy by 1.0" in remarks(summary)[-1]
    summary["devices"]["cam-01"]["pictures"]["test"] = 40
    assert "on 40 to 100 pictures" in remarks(summary)[-1]
    assert "by 1.0 to 2.5 points" in remarks(summary)[-1]
