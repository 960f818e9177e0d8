"""The figures of a simulation: means over seeds and held-out domains, checked by hand."""

from __future__ import annotations

import pytest
from outcomes import outcome

from fedclip_edge.simulating.summary import (
    by_domain,
    means,
    over_seeds,
    percent,
    summarise,
    to_json,
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


def test_the_mean_over_held_out_domains_comes_first_and_spreads_over_seeds_alone() -> None:
    its = [outcome(0.5, s, "roof") for s in (0, 1)] + [outcome(0.9, s, "yard") for s in (0, 1)]
    mean, roof, yard = rows = summarise(its)
    assert [row.held_out for row in rows] == ["mean", "roof", "yard"]
    assert means(rows) == [mean]
    assert by_domain(rows) == {"roof": [roof], "yard": [yard]}
    its += [outcome(0.9, 0, "mean")]  # a domain of this name
    assert list(by_domain(summarise(its))) == ["roof", "yard", "mean"]
    assert by_domain(summarise([outcome(0.5, 0, "roof")])) == {}
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


def test_it_is_json() -> None:
    (row,) = to_json(summarise([outcome(0.5)]))
    assert row["mean"] == {"mean": 0.5, "spread": None}
    assert row["held_out_top1"] is None


def test_own_models_stand_beside_the_shared_ones_on_the_same_pictures() -> None:
    (row,) = summarise([outcome(0.5, seed, own=(0.75 + seed / 8, 0.25)) for seed in (0, 1)])
    assert row.own_pictures is not None
    assert row.other_pictures is not None
    assert percent(row.own_pictures.own) == "81.2±8.8"
    assert percent(row.own_pictures.shared) == "50.0±0.0"
    assert percent(row.other_pictures.own) == "25.0±0.0"
    assert percent(row.other_pictures.worst) == "15.0±0.0"
    assert percent(row.other_pictures.zero_shot) == "30.0±0.0"
    (found,) = to_json([row])
    assert found["other_pictures"]["own"] == {"mean": 0.25, "spread": 0.0}


def test_without_own_models_there_is_nothing_to_compare() -> None:
    (row,) = summarise([outcome(0.5)])
    assert row.own_pictures is None
    assert to_json([row])[0]["other_pictures"] is None
