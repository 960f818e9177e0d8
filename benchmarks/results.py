"""The tables of docs/explanation/results.md, made by `fedclip-edge simulate` on real pictures.

    python benchmarks/results.py --data PICTURES --bundle BUNDLE --write

`--only NAME` runs one table. `--write` puts the tables into the page, each below the commands that
made it. Accuracies are on test pictures; settings were chosen on validation pictures only (the page
says how).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedclip_edge.records import slug
from fedclip_edge.simulating.summary import MEAN as MEAN_ROW

PAGE = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "results.md"
SEEDS = "--seeds 3"
GATE = "fedclip@lr=1e-3,loss=cross-entropy,weight_decay=0"  # the gate, with options that learn more
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column: its heading, and the text of its cell for a row of summary.json."""

    head: str
    show: Callable[[Row], str]


@dataclass(frozen=True)
class Command:
    """A call of simulate; `label` is an extra first cell of its rows, for tables in FIRST."""

    arguments: str
    label: str = ""


@dataclass(frozen=True)
class Table:
    """A table with the rows of its commands; several held-out domains give one row, their mean."""

    commands: tuple[Command, ...]
    columns: tuple[Column, ...]


def percent(name: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        figure = row[name]
        if figure is None:
            return "-"
        spread = "" if figure["spread"] is None else f" ± {100 * figure['spread']:.2f}"
        return f"{100 * figure['mean']:.2f}{spread}"

    return show


def megabytes(row: Row) -> str:
    return f"{(row['up_bytes'] + row['down_bytes']) / 1e6:.2f}"


METHOD = Column("method", lambda row: f"`{row['method']}`")
ROUNDS = Column("rounds", lambda row: str(row["rounds"]))
HELD_OUT = Column("held-out domain, %", percent("held_out_top1"))
MEAN = Column("mean over devices, %", percent("mean"))
WORST = Column("worst device, %", percent("worst"))
ECE = Column("ECE, %", percent("ece"))
BYTES = Column("MB per device, both directions", megabytes)

ALL = (
    "zeroshot",
    "fedclip",
    "fedclip@rounds=200",
    GATE,
    "linear",
    "clip-adapter",
    "lowrank",
    "ridge",
    "gda",
    "tip-adapter",
)
REFERENCE_POINTS = (GATE, "linear", "clip-adapter", "lowrank", "ridge", "gda")
STRATEGIES = (
    "zeroshot",
    "linear",
    "linear@proximal_mu=30",
    "linear@strategy=fedavgm",
    "linear@strategy=fedadam,strategy.lr=0.1",
    "linear@strategy=fedyogi,strategy.lr=0.1",
    "linear@optimizer=sgd,lr=0.003",
    "ridge",
    "gda",
)
ROBUST = (
    "zeroshot",
    "linear",
    *(f"linear@strategy={name}" for name in ("median", "trimmed-mean", "krum", "multi-krum")),
    "ridge",
    "gda",
)
PERSONAL = tuple(
    setting
    for method in ("fedclip", "linear", "clip-adapter", "lowrank", "ridge")
    for setting in (
        method,
        f"{method}@personal_epochs={1 if method == 'ridge' else 10}",
    )
)
FEW = (
    "zeroshot",
    GATE,
    "linear",
    "clip-adapter",
    "lowrank",
    "ridge@min_per_class=1",
    "gda@min_per_class=1",
)
OPEN = ("zeroshot", "fedclip", GATE, "clip-adapter", "lowrank")


def _trained(how: str, setting: str) -> str:
    method, at, options = setting.partition("@")
    return f"{method}:{how}{at}{options}"


def _methods(*settings: str) -> str:
    return f"--methods {','.join(settings)} {SEEDS}"


TABLES: Mapping[str, Table] = {
    "methods": Table(
        (Command(f"--hold-out all {_methods(*ALL)}"),),
        (METHOD, ROUNDS, HELD_OUT, MEAN, WORST, ECE, BYTES),
    ),
    "local-pooled": Table(
        tuple(
            Command(f"--hold-out all {_methods(*(_trained(how, one) for one in REFERENCE_POINTS))}")
            for how in ("local", "pooled")
        ),
        (METHOD, HELD_OUT, MEAN, WORST),
    ),
    "strategies": Table(
        (Command(f"--split dirichlet:0.1 --devices 10 {_methods(*STRATEGIES)}"),),
        (METHOD, ROUNDS, MEAN, WORST, BYTES),
    ),
    "robust": Table(
        tuple(
            Command(f"--split iid --devices 10 --noisy {share} {_methods(*ROBUST)}", label)
            for share, label in ((0, "none"), (0.2, "2 of 10"))
        ),
        (METHOD, MEAN, WORST),
    ),
    "personal": Table(
        (Command(f"--split domain {_methods(*PERSONAL)}"),), (METHOD, ROUNDS, MEAN, WORST, ECE)
    ),
    "skew": Table(
        tuple(
            Command(
                f"--split dirichlet:{alpha} --devices 10 {_methods(*ALL[:2], *ALL[3:])}", str(alpha)
            )
            for alpha in (0.1, 0.5)
        ),
        (METHOD, MEAN, WORST),
    ),
    "shots": Table(
        tuple(
            Command(f"--split domain --shots {shots} {_methods(*FEW)}", str(shots))
            for shots in (1, 2, 4, 8, 16)
        ),
        (METHOD, MEAN, WORST),
    ),
    "new-classes": Table(
        (Command(f"--split domain --base-to-new {_methods(*OPEN)}"),),
        (
            METHOD,
            Column("classes", lambda row: row["view"]),
            MEAN,
            Column("harmonic mean, %", percent("harmonic")),
        ),
    ),
}
# Bytes that the reference would send in each direction, in float32: FedCLIP's gate, or all of CLIP.
GATE_BYTES, CLIP_BYTES = 4 * 525_312, 4 * 151_277_313
TARGET, TARGET_ROUNDS = "fedclip@rounds=200", 200
FIRST = {"robust": "devices that send noise", "skew": "alpha", "shots": "pictures per class"}


def simulate(arguments: str, data: Path, bundle: Path, folder: Path) -> list[Row]:
    """Run one command and return the rows of its summary."""
    program = Path(sys.executable).with_name("fedclip-edge")
    places = ["--data", str(data), "--bundle", str(bundle), "--out", str(folder)]
    places += ["--cache", str(folder / "features.sqlite")]  # not the user's
    base = [str(program), "simulate", *places, *arguments.split()]
    done = subprocess.run(
        base, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"simulate {arguments} failed:\n{done.stderr[-2000:]}")
    rows: list[Row] = json.loads((folder / "summary.json").read_text())["rows"]
    return rows


def rendered(name: str, found: Sequence[tuple[Command, Sequence[Row]]]) -> str:
    """Write the commands and the table in the page's Markdown."""
    table = TABLES[name]
    head = [*([FIRST[name]] if name in FIRST else []), *(column.head for column in table.columns)]
    lines = ["```sh"]
    lines += [
        f"fedclip-edge simulate --data PICTURES --bundle BUNDLE {c.arguments}" for c, _ in found
    ]
    lines += ["```", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for command, rows in found:
        for row in rows:
            if row["held_out"] not in ("", MEAN_ROW):
                continue
            cells = [command.label] if name in FIRST else []
            cells += [column.show(row) for column in table.columns]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cost(csv_file: Path) -> str:
    """Write the table of bytes until a method reaches FedCLIP's final accuracy.

    `csv_file` has the rows of the table `methods`. A method reaches the accuracy in the first round
    in which its means over seeds and held-out domains are as high as FedCLIP's, both on the
    devices' own test pictures and on the held-out domain. Bytes are those of one device, both
    directions.
    """
    held_out: dict[tuple[str, int], list[float]] = defaultdict(list)
    devices: dict[tuple[str, int], list[float]] = defaultdict(list)
    sent: dict[tuple[str, int], list[float]] = defaultdict(list)
    with csv_file.open(newline="") as file:
        for row in csv.DictReader(file):
            key, share = (row["method"], int(row["round"])), float(row["top1"])
            if row["device"] == slug(row["held_out"]):
                held_out[key].append(share)
            elif row["device"] != "all":
                devices[key].append(share)
                sent[key].append(float(row["bytes_up"]) + float(row["bytes_down"]))
    bar = tuple(statistics.fmean(its[TARGET, TARGET_ROUNDS]) for its in (devices, held_out))
    gate = 2 * GATE_BYTES * TARGET_ROUNDS
    head = ("method", "rounds", BYTES.head, "times fewer bytes than FedCLIP in float32")
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|"]
    for what, size in (("FedAvg of all of CLIP", CLIP_BYTES), ("FedCLIP", GATE_BYTES)):
        whole = 2 * size * TARGET_ROUNDS
        times = "1" if size == GATE_BYTES else f"1/{whole / gate:.0f}"
        lines.append(
            f"| {what}, float32, computed | {TARGET_ROUNDS} | {whole / 1e6:,.0f} | {times} |"
        )
    for method in dict.fromkeys(name for name, _ in sent):
        rounds = sorted(number for name, number in sent if name == method)
        for number in rounds[1:]:
            key = (method, number)
            reached = tuple(statistics.fmean(its[key]) for its in (devices, held_out))
            if all(share >= least - 1e-9 for share, least in zip(reached, bar, strict=True)):
                mine = statistics.fmean(sent[key])
                lines.append(f"| `{method}` | {number} | {mine / 1e6:,.2f} | {gate / mine:,.0f} |")
                break
        else:
            lines.append(f"| `{method}` | not within {rounds[-1]} | - | - |")
    return "\n".join(lines)


def put(page: str, name: str, text: str) -> str:
    """Return the page with `text` between the markers of `name`; exits if they are missing."""
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, opened, rest = page.partition(first)
    _, closed, after = rest.partition(last)
    if not opened or not closed:
        sys.exit(f"the page has no markers {first} and {last}")
    return f"{before}{first}\n{text}\n{last}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--only", choices=TABLES, action="append")
    parser.add_argument(
        "--write", action="store_true", help="put the tables into docs/explanation/results.md"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"Python {platform.python_version()}, {platform.machine()}, {cores} cores")
    every: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only or TABLES:
            began = time.monotonic()
            found = [
                (one, simulate(one.arguments, options.data, options.bundle, Path(folder)))
                for one in TABLES[name].commands
            ]
            text = rendered(name, found)
            print(f"\n{name}, {time.monotonic() - began:.0f} s\n\n{text}", flush=True)
            every[name] = [row for _, rows in found for row in rows]
            parts = {name: text}
            if name == "methods":
                parts["bytes"] = cost(Path(folder) / "results.csv")
                print(f"\n{parts['bytes']}", flush=True)
            if options.write:
                page = PAGE.read_text(encoding="utf-8")
                for part, its in parts.items():
                    page = put(page, part, its)
                PAGE.write_text(page, encoding="utf-8")
    if options.json:
        print(json.dumps(every))


if __name__ == "__main__":
    main()
