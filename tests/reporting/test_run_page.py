"""The page of a run of a fleet, from two devices to a thousand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, measured

from fedclip_edge.reporting.run_page import write_run_page

HOSTILE = "<script>alert('x')</script>\"'&"


def entry(number: int, **changes: Any) -> dict[str, Any]:
    """A device; the accuracy of the shared model grows with its number."""
    shared = 0.5 + number / 4000
    return {
        "domain": "hall",
        "pictures": {"train": 600, "test": 200},
        "encoded": 0,
        "skipped": 0,
        "accuracy": {"zero_shot": 0.55, "federated": shared},
        "per_class": {},
        "accuracy_by_round": [0.55, 0.52, shared],
        "bytes_up_per_round": 16_512,
        "bytes_down_per_round": None,
        "seconds": {"encode": None, "train": 3.25, "wait": 1.0},
        "contributions": 2,
        "norm": 0.25,
        "norm_largest": 0.5,
        "norm_by_round": {"1": 0.25, "2": 0.5},
        "updates_bytes": 33_024,
        **changes,
    }


def summary(count: int, **changes: Any) -> dict[str, Any]:
    return {
        "version": "9.8.7",
        "fleet": "lab",
        "run": "run-12345678",
        "state": "done",
        "encoder": {"model": None, "encoder_id": "e" * 64},
        "method": "gda",
        "options": {},
        "seed": 4,
        "rounds": 2,
        "rounds_closed": 2,
        "classes": [],
        "devices": {f"cam-{number:04}": entry(number) for number in range(count)},
        "evaluators": {},
        "vote": False,
        "decision": None,
        **changes,
    }


def page(folder: Path, found: dict[str, Any]) -> str:
    path = folder / "run.html"
    write_run_page(path, found)
    return path.read_text(encoding="utf-8")


def rows(html: str) -> list[str]:
    """The ids in the first table, in its order."""
    return re.findall(r"cam-\d{4}", html[html.index("<tbody>") : html.index("</tbody>")])


def test_a_fleet_shows_its_contributions_and_its_run(tmp_path: Path) -> None:
    html = page(tmp_path, summary(2))
    for words in (
        "run-12345678 of the fleet lab", "Contributions", "0.250", "0.500", "33.0", "unknown",
        "run-12345678 (done)",
    ):  # fmt: skip
        assert words in html, words
    assert "demo" not in html
    assert "The vote" not in html


def test_the_decision_of_a_vote_is_told_with_its_figures(tmp_path: Path) -> None:
    vote = {"said": "412 validation pictures chose candidate 3.", "pictures": 412, "correct": 380}
    vote |= {"loss": 0.4123, "zero_shot_loss": 0.63, "zero_shot_correct": 350}
    html = page(tmp_path, summary(2, decision=vote))
    for words in ("412 validation pictures chose candidate 3.", "0.412", "0.630", "380", "350"):
        assert words in html, words
    vote["loss"] = None
    assert "zero-shot CLIP</th>" not in page(tmp_path, summary(2, decision=vote))


def test_the_rounds_of_a_fleet_and_its_vote_are_counted(tmp_path: Path) -> None:
    decision = {"said": "There was no comparison.", "loss": None}
    html = page(tmp_path, summary(2, rounds=2, vote=True, decision=decision))
    assert "1 round and a vote, 2 devices:" in html
    assert "<dd>1 round and a vote</dd>" in html
    assert "the last step is the vote" in html
    assert "the last step is the vote" not in page(tmp_path, summary(2))


def test_a_fleet_is_compared_with_its_devices_alone(tmp_path: Path) -> None:
    found = summary(2, evaluators={"hall": entry(9)})
    for device, local in zip(found["devices"].values(), (0.61, 0.63), strict=True):
        device["accuracy"]["local"] = local
    html = page(tmp_path, found)
    assert (
        "On the devices' own pictures, on average: zero-shot CLIP 55.0\u00a0%, a device that trains "
        "alone 62.0\u00a0%, the fleet with gda 50.0\u00a0%. A model trained alone is tested here on its "
        "own device's pictures only;"
    ) in html.replace("&#39;", "'")
    assert '<th scope="col">local only</th>' in html
    assert "61.0 %" in html
    assert "FedCLIP" not in html
    assert "held" not in html[html.index("</style>") :].replace("held-out", "")


def test_of_a_thousand_devices_the_chart_shows_the_mean_and_the_worst(tmp_path: Path) -> None:
    html = page(tmp_path, summary(1000))
    assert len(html) < 2_000_000
    charts = html[html.index("<figure>") : html.index("</figure>")]
    assert "mean of 1000" in charts
    assert sorted(set(re.findall(r"cam-\d{4}", charts))) == [f"cam-{n:04}" for n in range(5)]
    shuffled = summary(1000)
    shuffled["devices"] = dict(reversed(shuffled["devices"].items()))
    assert rows(page(tmp_path, shuffled)) == sorted(rows(html))
    assert len(rows(html)) == 1000


def test_a_few_devices_keep_their_order_and_each_has_a_line(tmp_path: Path) -> None:
    found = summary(12)
    found["devices"] = dict(reversed(found["devices"].items()))
    html = page(tmp_path, found)
    assert rows(html) == list(found["devices"])
    assert len(set(re.findall(r"cam-\d{4} \d", html))) == 12


def test_names_from_outside_are_text(tmp_path: Path) -> None:
    found = summary(1, options={HOSTILE: HOSTILE}, classes=[HOSTILE])
    found["evaluators"] = {"hall": entry(1, domain=HOSTILE)}
    assert "<script" not in page(tmp_path, found)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed; it measures the page")
@pytest.mark.parametrize("width_px", [1200, 390])
def test_the_page_does_not_scroll_sideways(width_px: int, tmp_path: Path) -> None:
    found = summary(40, evaluators={"x" * 64: entry(7, domain="y" * 64)})
    found["decision"] = {"said": "z" * 200, "loss": 0.1, "zero_shot_loss": 0.2, "pictures": 9}
    found["decision"] |= {"correct": 8, "zero_shot_correct": 7}
    page(tmp_path, found)
    seen = measured(tmp_path / "run.html", width_px)
    assert (seen["width"], seen["wide"], seen["cut"]) == (width_px, [], [])
