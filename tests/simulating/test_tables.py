"""The tables of a simulation on the terminal: means first, and no figure lost at any width."""

from __future__ import annotations

import pytest
from outcomes import SEPARATION, outcome

from fedclip_edge.records import Plan
from fedclip_edge.simulating.settings import Setting
from fedclip_edge.simulating.summary import summarise
from fedclip_edge.simulating.tables import notes, tables

HEADS = ("zero-shot", "top-1", "all pictures", "worst", "macro F1", "ECE", "held-out", "harmonic")


def test_the_table_has_a_row_for_each_setting_and_only_the_columns_it_needs() -> None:
    other = Setting("ridge", Plan("fedclip", rounds=1, vote="off"))
    text = tables(summarise([outcome(0.5), outcome(0.8, setting=other, up=1000)]))
    head, _, first, second = text.splitlines()
    assert "held out" not in head
    assert "harmonic" not in head
    assert first.split()[:3] == ["fedclip", "30.0", "50.0"]  # zero-shot beside the mean
    assert first.split()[-3:] == ["2", "2.0", "4.0"]
    assert second.startswith("ridge")
    wide = tables(summarise([outcome(0.5, held_out="roof", view="new")]))
    assert "held-out" in wide
    assert "harmonic" in wide


def test_pictures_of_none_of_the_classes_have_columns_if_there_are_any() -> None:
    assert "AUROC" not in tables(summarise([outcome(0.5)]))
    rows = summarise([outcome(0.5, separation=SEPARATION)])
    head, units, first = tables(rows).splitlines()
    place = first.split().index("92.0")
    assert first.split()[place : place + 4] == ["92.0", "92.0", "20.0", "60.0"]
    assert (head.count("AUROC"), head.count("unknown")) == (2, 2)
    assert "AUROC: probability" in notes(rows)
    assert units.count("of others, %") == 1


def test_means_come_first_and_then_the_held_out_domains() -> None:
    its = [outcome(0.5, s, "roof") for s in (0, 1)] + [outcome(0.875, s, "yard") for s in (0, 1)]
    blocks = [block.splitlines() for block in tables(summarise(its)).split("\n\n")]
    assert blocks[0] == ["Means over 2 held-out domains and 2 seeds:"]
    assert blocks[1][2].split()[:3] == ["fedclip", "30.0±0.0", "68.8±0.0"]
    assert blocks[2][0].endswith("by held-out domain:")
    assert [line.split() for line in blocks[3]] == [
        ["method", "roof", "yard"],
        ["zero-shot", "30.0±0.0", "30.0±0.0"],
        ["fedclip", "50.0±0.0", "87.5±0.0"],
    ]
    assert blocks[4] == ["Accuracy on the held-out domain, in %, by held-out domain:"]
    assert blocks[5][2].split() == ["fedclip", "25.0±0.0", "43.8±0.0"]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
@pytest.mark.parametrize("label", ["ridge", "linear@strategy=fedadam,strategy.lr=0.01,lr=0.002"])
@pytest.mark.parametrize("domain", ["roof", "warehouse_camera_north_entrance"])
def test_no_figure_is_lost_at_any_width(width: int, label: str, domain: str) -> None:
    other = Setting(label, Plan("fedclip", rounds=1, vote="off"))
    its = [
        outcome(0.5 + s / 8, s, held_out, view)
        for s in (0, 1)
        for held_out in (domain, "cartoon-drawings", "the yard behind", "attic")
        for view in ("base", "new")
    ]
    rows = summarise([*its, outcome(0.625, 0, domain, "new", other, up=1234000)])
    whole, narrow = tables(rows), tables(rows, width)
    assert max(map(len, narrow.splitlines())) <= width
    assert "…" not in narrow
    joined = "".join(narrow.split())
    for word in [label, *HEADS, *(cell for cell in whole.split() if "±" in cell)]:
        assert "".join(word.split()) in joined or word in (label, domain), word
    assert narrow.split().count("617.0") == whole.split().count("617.0") == 1
    for one in narrow.split("\n\n"):
        if one.startswith("method") and width > 40:
            assert one.splitlines()[0].count("held-out") in (0, 2)  # its columns stay together


def test_own_models_have_a_table_of_their_own() -> None:
    other = Setting("ridge", Plan("ridge", rounds=1))
    rows = summarise([outcome(0.5, own=(0.75, 0.25)), outcome(0.5, setting=other)])
    _, title, table = tables(rows).split("\n\n")
    assert title.startswith(
        "Each device's own model on its own test pictures and on those of other"
    )
    heads, models, *lines = (line.split() for line in table.splitlines())
    assert heads[0] == "method"
    assert models == ["zero-shot", "shared", "own", "zero-shot", "shared", "own", "worst", "own"]
    assert lines == [["fedclip", "30.0", "50.0", "75.0", "30.0", "50.0", "25.0", "15.0"]]
    assert "own model" not in tables(summarise([outcome(0.5)]))
    assert "a real device never has" in " ".join(notes(rows).split())
