"""The demo's closing table: one column for each measured kind of accuracy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from fedclip_edge.demo import summary


def figures(domain: str, **accuracy: float) -> dict[str, Any]:
    return {
        "domain": domain,
        "pictures": {"train": 60, "test": 20},
        "encoded": 80,
        "accuracy": accuracy,
        "bytes_up_per_round": 1000,
        "bytes_down_per_round": None,
        "seconds": {"encode": 1.0, "train": 2.0, "wait": 3.0},
    }


def table(**accuracy: float) -> list[list[str]]:
    devices = {"cam": figures("photo", zero_shot=0.5, federated=0.6, **accuracy)}
    held_out = figures("art", zero_shot=0.4, federated=0.45)
    text = summary.table({"devices": devices, "held_out": held_out})
    return [line.split() for line in text.splitlines()]


def test_what_the_fleet_is_compared_with_has_its_columns() -> None:
    devices = {"cam": figures("photo", zero_shot=0.5, fedclip=0.51, local=0.55, federated=0.6)}
    held_out = figures("art", zero_shot=0.4, fedclip=0.41, local=0.42, federated=0.45)
    both = {"devices": devices, "held_out": held_out, "method": "auto", "fedclip_rounds": 30}
    head, _, cam, art = (line.split() for line in summary.table(both).splitlines())
    assert head[3:8] == ["zero-shot", "FedCLIP", "local", "federated", "gain"]
    assert cam[3:8] == ["50.0", "51.0", "55.0", "60.0", "+10.0"]
    assert art[5:10] == ["40.0", "41.0", "42.0", "45.0", "+5.0"]
    notes = " ".join(summary.notes(both).split())
    assert "FedCLIP: FedCLIP as published, trained by the same devices, 30 rounds;" in notes
    assert "trained with auto;" in notes


def test_without_the_baselines_their_columns_are_not_explained() -> None:
    both = {
        "devices": {"cam": figures("photo", zero_shot=0.5, federated=0.6)},
        "held_out": figures("art", zero_shot=0.4, federated=0.45),
        "method": "auto",
        "fedclip_rounds": None,
    }
    assert "FedCLIP" not in summary.table(both) + summary.notes(both)
    assert "local" not in summary.table(both) + summary.notes(both)


def test_a_percent_sign_stays_with_its_number() -> None:
    for columns in range(20, 40):
        lines = summary.filled("the fleet with auto 79.1 %, alone 72.6 % on average", columns)
        assert not any(line.startswith("%") for line in lines.splitlines())
        assert " ".join(lines.split()) == "the fleet with auto 79.1 %, alone 72.6 % on average"


def test_the_gain_is_that_of_the_fleets_model() -> None:
    head, _, cam, held_out = table(local=0.55)
    assert head[3:7] == ["zero-shot", "local", "federated", "gain"]
    assert cam[3:7] == ["50.0", "55.0", "60.0", "+10.0"]
    assert held_out[5:9] == ["40.0", "-", "45.0", "+5.0"]


def test_the_gain_is_the_difference_of_the_figures_beside_it() -> None:
    """17/60 - 7/60 is 16.67 points, but the report and the figures beside it say 16.6."""
    cam = figures("photo", zero_shot=7 / 60, federated=17 / 60)
    text = summary.table({"devices": {"cam": cam}, "held_out": cam})
    assert text.splitlines()[2].split()[3:6] == ["11.7", "28.3", "+16.6"]


def test_a_model_of_the_devices_own_has_its_column() -> None:
    head, units, cam, held_out = table(personal=0.7)
    assert head[3:7] == ["zero-shot", "federated", "personal", "gain"]
    assert units[-9:-5] == ["%", "%", "%", "points"]
    assert cam[3:7] == ["50.0", "60.0", "70.0", "+20.0"]
    assert held_out[5:9] == ["40.0", "45.0", "-", "+5.0"]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_figure_is_lost_at_any_width(width: int) -> None:
    devices = {f"cam-{n}": figures("photo", zero_shot=n / 9, federated=n / 7) for n in range(5)}
    for device in devices.values():
        device["accuracy"]["personal"] = 0.777
    held_out = figures("a-domain-with-quite-a-long-name", zero_shot=0.4, federated=0.45)
    both = {"devices": devices, "held_out": held_out}
    whole, narrow = summary.table(both), summary.table(both, width)
    assert max(map(len, narrow.splitlines())) <= width
    names = {"device", "(held", "out)", "a-domain-with-quite-a-long-name"}
    cells = Counter(whole.split()) - Counter(dict.fromkeys((*names, *devices), 9))
    assert not cells - Counter(narrow.split())


def test_on_a_narrow_terminal_accuracy_and_cost_are_apart() -> None:
    devices = {"cam": figures("photo", zero_shot=0.5, federated=0.6, personal=0.7)}
    both = {"devices": devices, "held_out": figures("art", zero_shot=0.4, federated=0.45)}
    accuracy, cost = summary.table(both, columns=70).split("\n\n")
    assert accuracy.splitlines()[0].split()[-2:] == ["personal", "gain"]
    assert cost.splitlines()[0].split()[:3] == ["device", "encoded", "up"]
