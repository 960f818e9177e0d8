"""The closing table: means over seeds and held-out domains, checked by hand."""

from __future__ import annotations

import pytest

from fedclip_edge.learning.evaluation import Evaluation, FleetEvaluation
from fedclip_edge.records import Plan
from fedclip_edge.simulating.report import best, drawings
from fedclip_edge.simulating.results import Outcome, Point, Run
from fedclip_edge.simulating.settings import Setting
from fedclip_edge.simulating.summary import over_seeds, percent, summarise, table, to_json

FEDCLIP = Setting("fedclip", Plan(rounds=2))


def outcome(
    mean: float,
    seed: int = 0,
    held_out: str = "",
    view: str = "",
    setting: Setting = FEDCLIP,
    up: int = 4000,
) -> Outcome:
    fleet = FleetEvaluation(10, mean + 0.01, mean, mean - 0.1, mean - 0.05, 0.02)
    apart = Evaluation(5, mean / 2, 0.1, 0.1, ()) if held_out else None
    return Outcome(
        run=Run(setting, seed, "domain", held_out, (view,)),
        view=view,
        points=(Point(0, 0.3, 0.1, 100), Point(1, mean, 0.2, 200), Point(2, mean, 0.3, 9000)),
        fleet=fleet,
        zero_shot=FleetEvaluation(10, 0.3, 0.3, 0.2, 0.25, 0.2),
        held_out=apart,
        held_out_zero_shot=apart,
        devices=2,
        up_bytes=up,
        down_bytes=8000,
    )


def test_a_mean_and_the_spread_over_the_seeds() -> None:
    (row,) = summarise([outcome(0.5, 0), outcome(0.6, 1), outcome(0.7, 2)])
    assert row.mean is not None
    assert row.mean.mean == pytest.approx(0.6)
    assert row.mean.spread == pytest.approx(0.1)
    assert percent(row.mean) == "60.0±10.0"
    assert (row.seeds, row.rounds, row.up_bytes, row.down_bytes) == (3, 2, 2000, 4000)
    assert row.worst is not None
    assert row.worst.mean == pytest.approx(0.5)


def test_one_seed_has_no_spread_and_nothing_has_no_figure() -> None:
    (row,) = summarise([outcome(0.5)])
    assert percent(row.mean) == "50.0"
    assert percent(row.held_out_top1) == "-"
    assert over_seeds([(0, None)]) is None


def test_the_mean_over_held_out_domains_comes_last_and_spreads_over_seeds_alone() -> None:
    its = [outcome(0.5, s, "roof") for s in (0, 1)] + [outcome(0.9, s, "yard") for s in (0, 1)]
    roof, yard, mean = summarise(its)
    assert [row.held_out for row in (roof, yard, mean)] == ["roof", "yard", "mean"]
    assert mean.mean is not None
    assert mean.mean.mean == pytest.approx(0.7)
    assert mean.mean.spread == pytest.approx(0)
    assert mean.held_out_top1 is not None
    assert mean.held_out_top1.mean == pytest.approx(0.35)


def test_the_harmonic_mean_stands_with_the_new_classes() -> None:
    base, new = summarise([outcome(0.5, view="base"), outcome(1.0, view="new")])
    assert base.harmonic is None
    assert new.harmonic is not None
    assert new.harmonic.mean == pytest.approx(2 / 3)


def test_the_table_has_a_row_for_each_setting_and_only_the_columns_it_needs() -> None:
    other = Setting("ridge", Plan(rounds=1))
    text = table(summarise([outcome(0.5), outcome(0.8, setting=other, up=1000)]))
    head, _, first, second = text.splitlines()
    assert "held out" not in head
    assert "harmonic" not in head
    assert first.split()[:4] == ["fedclip", "2", "30.0", "50.0"]
    assert first.split()[-2:] == ["2.0", "4.0"]
    assert second.startswith("ridge")
    wide = table(summarise([outcome(0.5, held_out="roof", view="new")]))
    assert "held out" in wide
    assert "harmonic" in wide


@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize("label", ["ridge", "linear@strategy=fedadam,strategy.lr=0.01,lr=0.002"])
def test_no_figure_is_lost_at_any_width(width: int, label: str) -> None:
    other = Setting(label, Plan(rounds=1))
    rows = summarise(
        [outcome(0.5 + s / 8, s, "roof", view) for s in (0, 1) for view in ("base", "new")]
        + [outcome(0.625, 0, "roof", "new", other, up=1234000)]
    )
    whole, narrow = table(rows), table(rows, width)
    assert max(map(len, whole.splitlines())) > width
    assert max(map(len, narrow.splitlines())) <= width
    for cell in [*whole.split(), *HEADS]:
        if cell not in label:
            assert cell in narrow, cell
    assert narrow.split().count("617.0") == whole.split().count("617.0") == 1
    for one in narrow.split("\n\n"):
        assert one.startswith("method")
        assert one.count("held-out") in (0, 2)  # its two columns stay together


HEADS = ("zero-shot", "top-1", "all pictures", "worst", "macro F1", "ECE", "held-out", "harmonic")


def test_it_is_json() -> None:
    (row,) = to_json(summarise([outcome(0.5)]))
    assert row["mean"] == {"mean": 0.5, "spread": None}
    assert row["held_out_top1"] is None


def test_the_conclusion_names_the_best_that_was_sent_and_zero_shot() -> None:
    alone = Setting("fedclip:local", Plan(rounds=2), "local")
    rows = summarise([outcome(0.5), outcome(0.9, setting=alone, up=0)])
    assert best(rows) == (
        "fedclip reaches 50.0 % mean accuracy on the devices' own test pictures; zero-shot CLIP, "
        "without training, 30.0 %."
    )


def test_charts_are_by_round_and_by_byte() -> None:
    titles = [one.title for one in drawings([outcome(0.5, held_out="roof")])]
    assert titles == [
        "The devices' own test pictures, by round",
        "The devices' own test pictures, by bytes sent",
        "The held-out domain's pictures, by round",
        "The held-out domain's pictures, by bytes sent",
    ]
    by_bytes = drawings([outcome(0.5)])[1].charts[0][1]
    assert [tick.text for tick in by_bytes.x_ticks] == ["100 B", "1 kB", "10 kB"]
    assert by_bytes.curves[0].path.count("L") == 2
