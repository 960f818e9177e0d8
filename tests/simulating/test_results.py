"""Rows of the CSV file and outcomes for the table, checked by hand."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from simulated import NONE

from fedclip_edge.learning.evaluation import Evaluation
from fedclip_edge.records import Plan
from fedclip_edge.simulating.federation import Round
from fedclip_edge.simulating.results import COLUMNS, Following, Run, header, rows
from fedclip_edge.simulating.settings import Setting
from fedclip_edge.simulating.splits import Device, Fleet

FLEET = Fleet(
    tuple(Device(name, NONE, NONE, NONE) for name in ("a", "b", "c")),
    Device("out", NONE, NONE, NONE),
)
RUN = Run(Setting("fedclip@lr=0.1,epochs=2", Plan("fedclip", rounds=1)), 3, "domain", "out", ("",))


def one(top1: float, pictures: int = 10) -> Evaluation:
    return Evaluation(pictures, top1, top1 / 2, 0.1, (top1, None))


def found(round: int, *, view: str = "") -> Round:
    shares = {"a": one(0.5), "b": one(1.0, 30), "out": one(0.25)}
    before = {name: one(0.1) for name in shares}
    up = {"a": 100 * round, "b": 200 * round, "c": 0, "out": 0}
    return Round(
        round,
        None,
        {(name, view): its for name, its in shares.items()},
        {(name, view): its for name, its in before.items()},
        up,
        dict.fromkeys(("a", "b", "c", "out"), 1000 * (round + 1)),
    )


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(header() + text)))


def test_the_header_is_what_was_promised() -> None:
    assert header() == (
        "method,seed,split,held_out,device,round,top1,zero_shot,bytes_up,bytes_down\n"
    )
    assert header().strip().split(",") == list(COLUMNS)


def test_a_row_for_each_device_and_one_for_the_fleet() -> None:
    its = read(rows(RUN, FLEET, found(1)))
    assert [row["device"] for row in its] == ["a", "b", "c", "out", "all"]
    assert {row["method"] for row in its} == {"fedclip@lr=0.1,epochs=2"}
    assert {(row["seed"], row["split"], row["held_out"], row["round"]) for row in its} == {
        ("3", "domain", "out", "1")
    }
    a, b, c, out, fleet = its
    assert (a["top1"], a["zero_shot"], a["bytes_up"], a["bytes_down"]) == (
        "0.500000",
        "0.100000",
        "100",
        "2000",
    )
    assert (c["top1"], c["zero_shot"]) == ("", "")
    assert out["top1"] == "0.250000"
    assert float(fleet["top1"]) == pytest.approx((10 * 0.5 + 30 * 1.0) / 40)
    assert (fleet["bytes_up"], fleet["bytes_down"]) == ("300", "6000")
    assert b["bytes_up"] == "200"


def test_alone_there_is_no_row_for_the_held_out_domain() -> None:
    local = replace(RUN, setting=replace(RUN.setting, line="local"))
    assert [row["device"] for row in read(rows(local, FLEET, found(1)))] == ["a", "b", "c", "all"]


def test_base_and_new_classes_stand_in_the_column_of_the_split() -> None:
    both = replace(RUN, views=("base", "new"))
    its = read(rows(both, FLEET, found(0, view="new")))
    assert [row["split"] for row in its] == ["domain base"] * 5 + ["domain new"] * 5
    assert its[0]["top1"] == ""
    assert its[5]["top1"] == "0.500000"


def test_the_outcome_is_that_of_the_last_round_with_every_point_on_the_way() -> None:
    following = Following(RUN, FLEET)
    following.add(found(0))
    following.add(found(1))
    (outcome,) = following.outcomes()
    assert [point.round for point in outcome.points] == [0, 1]
    assert outcome.points[1].mean == 0.75
    assert outcome.points[1].held_out == 0.25
    assert outcome.points[1].body_bytes == 300 + 6000
    assert outcome.fleet is not None
    assert outcome.fleet.worst == 0.5
    assert outcome.held_out == one(0.25)
    assert outcome.zero_shot is not None
    assert outcome.zero_shot.mean == pytest.approx(0.1)
    assert (outcome.devices, outcome.up_bytes, outcome.down_bytes) == (3, 300, 6000)


def test_a_fleet_without_test_pictures_has_no_figures() -> None:
    blind = replace(found(0), figures={}, zero_shot={})
    following = Following(RUN, FLEET)
    following.add(blind)
    (outcome,) = following.outcomes()
    assert outcome.fleet is None
    assert outcome.held_out is None
    assert outcome.points[0].mean is None
    assert read(rows(RUN, FLEET, blind))[-1]["top1"] == ""
