"""The benchmarks of accuracy: cells, limits, interrupted runs, and a few cells of CLIP features."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkout import ROOT, SHARED

sys.path.insert(0, str(ROOT / "benchmarks"))

import cells
import learning_curves
import never_worse
from cells import Cell, Seen

from fedclip_edge.simulating.pool import TEST, Pool

pytestmark = pytest.mark.one_python  # the result does not depend on the Python version
CLASSES, DIM = 6, 32
FOOD = SHARED / "clip" / "foodL.npz"


def write_set(path: Path, *, wrong: bool = False, shots: int = 16) -> Path:
    """Write drawn features near their class texts; with `wrong` the training labels are false."""
    random = np.random.default_rng(0)
    texts = random.standard_normal((CLASSES, DIM))
    arrays: dict[str, Any] = {"class_texts": texts, "classes": [f"c{n}" for n in range(CLASSES)]}
    for side, count in (("train", shots), ("test", 20)):
        labels = np.repeat(np.arange(CLASSES), count)
        arrays[f"{side}_x"] = texts[labels] + 1.5 * random.standard_normal((len(labels), DIM))
        arrays[f"{side}_y"] = (labels + 1) % CLASSES if wrong and side == "train" else labels
    np.savez(path, **arrays)
    return path


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return cells.read_array_file(write_set(tmp_path / "drawn.npz"))


def run(script: str, *arguments: object) -> tuple[int, list[str]]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--jobs", "2", "--json"]
    ended = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.stderr == ""
    return ended.returncode, ended.stdout.splitlines()


def seen(won: int, lost: int, pictures: int = 100) -> Seen:
    return Seen(cells.DEVICES, pictures, 50 + won - lost, won, lost, 0.1, 0.2, 0.3, 0.4)


@pytest.mark.skipif(not FOOD.exists(), reason="the features of ../shared/data are not there")
def test_gda_is_never_worse_on_a_small_part_of_the_cells(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    arguments = ("--features", FOOD, "--quick", "--seeds", 1, "--results", results)
    code, lines = run("never_worse.py", *arguments)
    assert code == 0, lines
    figures = json.loads(lines[-1])
    assert figures["broken"] == []
    assert {(row["floor"], row["shots"]) for row in figures["rows"]} >= {(1, 1), (5, 16)}
    assert all(row["worst"] >= 0 for row in figures["rows"])


def test_a_method_that_loses_breaks_the_limits(tmp_path: Path) -> None:
    """Its training pictures have false labels."""
    path = write_set(tmp_path / "false.npz", wrong=True)
    code, lines = run(
        "never_worse.py", "--features", path, "--quick", "--methods", "ridge@vote=off"
    )
    assert code == 1
    broken = json.loads(lines[-1])["broken"]
    assert any("below zero-shot by more than one standard error" in text for text in broken)
    assert any("below zero-shot by more than 1 point" in text for text in broken)
    assert all(text in lines for text in broken)


def test_an_interrupted_run_continues_with_the_same_figures(tmp_path: Path) -> None:
    path, results = write_set(tmp_path / "drawn.npz"), tmp_path / "results.jsonl"
    arguments = ("--features", path, "--quick", "--seeds", 1, "--results", results)
    _, whole = run("never_worse.py", *arguments)
    count = len(results.read_text().splitlines())
    assert f"{count} cells, 0 of them measured before" in whole[0]
    first, _, rest = results.read_text().partition("\n")
    results.write_text(f"{first}\n{rest[:50]}")  # the second line was being written
    _, again = run("never_worse.py", *arguments)
    assert f"{count} cells, 1 of them measured before" in again[0]
    assert json.loads(again[-1]) == json.loads(whole[-1])
    assert len(cells.read_results(results, cells.code_version())) == count
    assert cells.read_results(results, "other") == {}


def test_shots_are_nested_and_leave_out_no_test_picture(pool: Pool) -> None:
    parts = [cells.few(pool, shots, seed=0) for shots in (1, 2, 4, cells.ALL)]
    for smaller, larger in itertools.pairwise(parts):
        assert {row.tobytes() for row in smaller.vectors} < {
            row.tobytes() for row in larger.vectors
        }
    for part, shots in zip(parts, (1, 2, 4, 16), strict=True):
        assert np.bincount(part.labels[part.sides != TEST]).tolist() == [shots] * CLASSES
        assert len(part.rows(TEST)) == len(pool.rows(TEST))


def test_a_cell_that_the_set_cannot_fill_is_left_out(pool: Pool) -> None:
    cell = Cell("drawn", "iid", 5, 16, 0, 1, "gda")
    assert cells.fills(pool, cell)
    assert not cells.fills(pool, Cell(**{**vars(cell), "shots": 17}))
    assert not cells.fills(pool, Cell(**{**vars(cell), "devices": 6 * 16}))  # some validate
    made = list(never_worse.grid({"drawn": pool}, ["gda"], 1, quick=False))
    assert all(cells.fills(pool, one) for one in made)
    assert {one.devices for one in made if one.shots == 16} == {5, 10, 50}


def test_only_pictures_that_one_of_the_two_misses_count_in_the_error() -> None:
    labels = np.array([0, 0, 0, 1])
    mine = np.array([[2, 1], [2, 1], [1, 2], [1, 2]], np.float32)
    zero = np.array([[2, 1], [1, 2], [2, 1], [1, 2]], np.float32)
    found = cells.compared("here", mine, zero, labels)
    assert (found.right, found.won, found.lost) == (3, 1, 1)
    assert (found.gain, found.zero_top1) == (0, 0.75)
    assert found.error == pytest.approx(2**0.5 / 4)


@pytest.mark.parametrize(
    ("lost", "worse_cells", "sentences"),
    [(1, 100, 0), (9, 1, 1), (9, 3, 2), (0, 0, 0)],
    ids=["within the error", "one cell", "three cells", "none"],
)
def test_the_limits_are_those_of_the_cells(lost: int, worse_cells: int, sentences: int) -> None:
    worse = [seen(0, lost)] * worse_cells
    row = never_worse.summary("s", "m", 1, 4, [*worse, *[seen(5, 1)] * (100 - worse_cells)])
    assert len(never_worse.broken(row)) == sentences
    assert row.worst == (min(0.04, -lost / 100) if worse_cells else 0.04)


def test_the_held_out_domain_has_rows_of_its_own() -> None:
    cell = Cell("PACS", "domain", 3, cells.ALL, 0, 1, "gda", "sketch")
    there = Seen(cells.HELD_OUT, *list(vars(seen(1, 0)).values())[1:])
    made = never_worse.rows({cell: [seen(2, 0), there]})
    assert [(row.source, row.gain) for row in made] == [
        ("PACS, devices", 0.02),
        ("PACS, held-out domain", 0.01),
    ]
    assert "| all |" in never_worse.table(made, never_worse.totals(made))


def test_the_curves_compare_with_the_best_reference() -> None:
    def point(method: str, top1: float, shots: int = 4) -> learning_curves.Point:
        return learning_curves.Point("foodL", cells.DEVICES, shots, method, 5, top1, 87.0, 5.0)

    its = [point("auto", 93.2), point("linear@vote=off", 90.0), point("lowrank@vote=off", 94.1)]
    assert [kept for _, kept in learning_curves.checks(its)] == [True, True]
    checked = learning_curves.checks([*its, point("clip-adapter@vote=off", 94.3)])
    assert [kept for _, kept in checked] == [True, False]
    assert checked[1][0] == (
        "auto, foodL, 4 shots: 93.20 %, clip-adapter@vote=off 94.30 % (at most 1 below)"
    )
    assert learning_curves.checks([point("gda", 92.4, 16)])[0][1] is False


def test_the_curves_are_printed_with_the_centralised_reference(tmp_path: Path) -> None:
    path = write_set(tmp_path / "drawn.npz", shots=4)
    arguments = ("--features", path, "--methods", "gda,centralised", "--seeds", 1)
    code, lines = run("learning_curves.py", *arguments)
    assert code == 0
    figures = json.loads(lines[-1])
    assert [(one["method"], one["shots"]) for one in figures["points"]] == [
        ("gda", 4), ("centralised", 4),
    ]  # fmt: skip
    assert all(one["top1"] >= one["zero"] for one in figures["points"])
    assert any(line.startswith("| centralised | ") for line in lines)


@pytest.mark.parametrize("script", ["never_worse.py", "learning_curves.py"])
def test_without_a_set_the_options_are_named(script: str) -> None:
    ended = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "give --data, --features or --pacs" in ended.stderr
