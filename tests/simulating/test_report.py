"""The report of a simulation: means first, one colour for each method, nothing cut off."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser import CHROMIUM, measured
from outcomes import FEDCLIP, SEPARATION, outcome

from fedclip_edge.records import Plan
from fedclip_edge.simulating.report import best, drawings, styles, write_report
from fedclip_edge.simulating.results import Outcome
from fedclip_edge.simulating.settings import Setting, parse_settings
from fedclip_edge.simulating.summary import summarise

METHODS = (
    "zeroshot,fedclip,fedclip@lr=1e-3,loss=cross-entropy,rounds=2,"
    "linear@strategy=fedadam,strategy.lr=0.01,rounds=2,ridge:local,ridge:pooled@l2=0.3"
)
DOMAINS = (
    "art", "cartoon-drawings-from-magazines-2019", "warehouse_camera_north_entrance", "x" * 60,
)  # fmt: skip


def outcomes() -> list[Outcome]:
    """A comparison of six settings on four held-out domains with three seeds."""
    return [
        outcome(0.4 + number / 20 + seed / 100, seed, domain, "", setting, up=4_000_000 * number)
        for seed in range(3)
        for domain in DOMAINS
        for number, setting in enumerate(parse_settings(METHODS, None))
    ]


def page(folder: Path, its: list[Outcome]) -> Path:
    whole = {
        "split": "domain",
        "noisy": 0.0,
        "leave_out": 0,
        "min_per_class": None,
        "pictures": 1234,
        "classes": ["car", "a class with quite a long name"] * 20,
        "encoder_id": "0123456789abcdef" * 4,
    }
    path = folder / "report.html"
    write_report(path, summarise(its), its, whole)
    return path


def test_the_conclusion_names_the_best_that_was_sent_and_zero_shot() -> None:
    alone = Setting("fedclip:local", Plan("fedclip", rounds=2), "local")
    rows = summarise([outcome(0.5), outcome(0.4, setting=alone, up=0)])
    assert best(rows) == (
        "fedclip reaches 50.0 % mean accuracy on the devices' own test pictures; zero-shot CLIP, "
        "without training, 30.0 %."
    )
    rows = summarise([outcome(0.5), outcome(0.9, setting=alone, up=0)])
    assert best(rows).endswith(
        " Devices that train alone, without a fleet, reach 90.0 % there (fedclip:local)."
    )


def test_charts_are_by_round_and_by_byte() -> None:
    titles = [one.title for one in drawings([outcome(0.5, held_out="roof")])]
    assert titles == [
        "The devices' own test pictures, by round",
        "The devices' own test pictures, by bytes sent and received",
        "The held-out domain's pictures, by round",
        "The held-out domain's pictures, by bytes sent and received",
    ]
    by_bytes = drawings([outcome(0.5)])[1].charts[0][1]
    assert [tick.text for tick in by_bytes.x_ticks] == ["100 B", "1 kB", "10 kB"]
    assert by_bytes.curves[0].path.count("L") == 2


def test_a_method_has_one_style_in_every_chart() -> None:
    its = outcomes()
    expected = styles(its)
    assert expected["zeroshot"] == "zero-shot"
    assert len(set(expected.values())) == len(expected)
    for drawing in drawings(its):
        for _, chart in drawing.charts:
            shown = {curve.name: curve.style for curve in chart.curves}
            assert shown.pop("zero-shot") == "zero-shot"
            assert shown.items() <= expected.items()
            assert len(shown) >= 3  # :local and :pooled have no bytes


def test_the_means_stand_before_the_charts_and_the_domains_after_them(tmp_path: Path) -> None:
    text = page(tmp_path, outcomes()).read_text()
    mean, chart, details = text.index("<h2>Means"), text.index("<figure"), text.index("<h2>All")
    assert mean < chart < details
    means = re.sub(r"<[^>]*>", "", text[mean:chart])
    assert "30.0±0.0" in means  # zero-shot
    assert "46.0±1.0" in means  # fedclip
    assert "cartoon-drawings" not in means
    in_details = re.sub(r"<[^>]*>", "", text[details:])
    assert all(domain in in_details for domain in DOMAINS)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed; it measures the page")
@pytest.mark.parametrize("width_px", [1200, 800, 390])
def test_the_page_does_not_scroll_sideways(width_px: int, tmp_path: Path) -> None:
    found = measured(page(tmp_path, outcomes()), width_px)
    assert found["width"] == width_px
    assert found["wide"] == []
    assert found["tables"] == 2
    # In the charts every text is inside the picture.
    assert found["cut"] == []


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed; it measures the page")
def test_the_table_of_the_means_is_whole_on_a_desktop(tmp_path: Path) -> None:
    for width_px in (1200, 800):
        assert measured(page(tmp_path, outcomes()), width_px)["hidden"][0] <= 0


def test_pictures_of_none_of_the_classes_have_a_table_if_there_are_any(tmp_path: Path) -> None:
    assert "none of the classes" not in page(tmp_path, [outcome(0.5)]).read_text()
    path = page(tmp_path, [outcome(0.5, separation=SEPARATION)])
    text = re.sub(r"<[^>]*>", " ", path.read_text())
    table = text[text.index("Pictures of none of the classes") :].split("by round")[0]
    assert re.findall(r"\d+\.\d", table) == ["92.0", "92.0", "20.0", "60.0"]
    if CHROMIUM is not None:
        assert measured(path, 390)["width"] == 390


def test_one_setting_without_a_domain_needs_no_more_than_its_row(tmp_path: Path) -> None:
    text = page(tmp_path, [outcome(0.5, setting=FEDCLIP)]).read_text()
    assert "held out" not in text
    assert "±" not in text


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (1, "the devices and 2 held-out domains."),
        (2, "the devices, 2 held-out domains and 2 seeds"),
    ],
)
def test_the_means_name_what_they_are_over(seeds: int, said: str, tmp_path: Path) -> None:
    its = [outcome(0.5, seed, domain) for seed in range(seeds) for domain in ("roof", "yard")]
    assert f"means over {said}" in page(tmp_path, its).read_text()


def test_the_price_of_own_models_stands_before_the_charts(tmp_path: Path) -> None:
    text = page(tmp_path, [outcome(0.5, setting=FEDCLIP, own=(0.75, 0.25))]).read_text()
    own = text[text.index("<h2>Each device") : text.index("<figure")]
    cells = re.sub(r"<[^>]*>", " ", own[own.index("<tbody>") :]).split()
    expected = "fedclip 30.0 50.0 75.0 30.0 50.0 25.0 \N{MINUS SIGN}25.0 15.0"
    assert cells[:9] == expected.split()
    assert "Each device" not in page(tmp_path, [outcome(0.5, setting=FEDCLIP)]).read_text()
