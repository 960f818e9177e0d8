"""The tables of docs/explanation/results.md: each is one or more `fedclip-edge simulate` commands on real pictures.

    python benchmarks/results.py --data PICTURES --bundle BUNDLE --write

`--only NAME` runs one table, `--write` puts what was found into the page, each table below the commands
that made it. Accuracies are on test pictures; settings were chosen on validation pictures alone
(the page says how).
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
GATE = "fedclip@lr=1e-3,loss=cross-entropy,weight_decay=0"  # the reference's gate, told to learn
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """Of a table: what stands above it, and what of a row of summary.json stands in it."""

    head: str
    show: Callable[[Row], str]


@dataclass(frozen=True)
class Command:
    """One call of simulate; `says` is the first column of its rows where the method is not enough."""

    arguments: str
    says: str = ""


@dataclass(frozen=True)
class Table:
    """Commands whose rows stand below each other; of several held-out domains their mean."""

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
HELD_OUT = Column("held out, %", percent("held_out_top1"))
MEAN = Column("the devices, %", percent("mean"))
WORST = Column("worst device, %", percent("worst"))
ECE = Column("ECE, %", percent("ece"))
BYTES = Column("MB a device, both ways", megabytes)

ALL = (
    "zeroshot",
    "fedclip",
    "fedclip@rounds=200",
    GATE,
    "linear",
    "clip-adapter",
    "lowrank",
    "ridge",
    "prototypes",
    "tip-adapter",
)
LINES = (GATE, "linear", "clip-adapter", "lowrank", "ridge", "prototypes")
STRATEGIES = (
    "zeroshot",
    "linear",
    "linear@proximal_mu=30",
    "linear@strategy=fedavgm",
    "linear@strategy=fedadam,strategy.lr=0.1",
    "linear@strategy=fedyogi,strategy.lr=0.1",
    "linear@optimizer=sgd,lr=0.003",
    "linear@optimizer=sgd,lr=0.001,strategy=scaffold",
    "ridge",
)
ROBUST = (
    "zeroshot",
    "linear",
    *(f"linear@strategy={name}" for name in ("median", "trimmed-mean", "krum", "multi-krum")),
    "ridge",
)
PERSONAL = tuple(
    setting
    for method in ("fedclip", "linear", "clip-adapter", "lowrank", "ridge", "prototypes")
    for setting in (
        method,
        f"{method}@personal_epochs={1 if method in ('ridge', 'prototypes') else 10}",
    )
)
FEW = (
    "zeroshot",
    GATE,
    "linear",
    "clip-adapter",
    "lowrank",
    "ridge@min_per_class=1",
    "prototypes@min_per_class=1",
)
OPEN = ("zeroshot", "fedclip", GATE, "clip-adapter", "lowrank")


def _line(name: str, setting: str) -> str:
    method, at, options = setting.partition("@")
    return f"{method}:{name}{at}{options}"


def _methods(*settings: str) -> str:
    return f"--methods {','.join(settings)} {SEEDS}"


TABLES: Mapping[str, Table] = {
    "methods": Table(
        (Command(f"--hold-out all {_methods(*ALL)}"),),
        (METHOD, ROUNDS, HELD_OUT, MEAN, WORST, ECE, BYTES),
    ),
    "lines": Table(
        tuple(
            Command(f"--hold-out all {_methods(*(_line(name, one) for one in LINES))}")
            for name in ("local", "pooled")
        ),
        (METHOD, HELD_OUT, MEAN, WORST),
    ),
    "strategies": Table(
        (Command(f"--split dirichlet:0.1 --devices 10 {_methods(*STRATEGIES)}"),),
        (METHOD, ROUNDS, MEAN, WORST, BYTES),
    ),
    "robust": Table(
        tuple(
            Command(f"--split iid --devices 10 --noisy {share} {_methods(*ROBUST)}", says)
            for share, says in ((0, "none"), (0.2, "2 of 10"))
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
# What the reference would send, in float32: the gate of FedCLIP, and all of CLIP ViT-B/32, each way.
GATE_BYTES, CLIP_BYTES = 4 * 525_312, 4 * 151_277_313
TARGET, TARGET_ROUNDS = "fedclip@rounds=200", 200
FIRST = {"robust": "devices that send noise", "skew": "alpha", "shots": "pictures a class"}


def simulate(arguments: str, data: Path, bundle: Path, folder: Path) -> list[Row]:
    """The rows of one command's summary."""
    program = Path(sys.executable).with_name("fedclip-edge")
    places = ["--data", str(data), "--bundle", str(bundle), "--out", str(folder)]
    base = [str(program), "simulate", *places, *arguments.split()]
    done = subprocess.run(
        base, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"simulate {arguments} failed:\n{done.stderr[-2000:]}")
    rows: list[Row] = json.loads((folder / "summary.json").read_text())["rows"]
    return rows


def rendered(name: str, found: Sequence[tuple[Command, Sequence[Row]]]) -> str:
    """The commands and the table, as they stand in the page."""
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
            cells = [command.says] if name in FIRST else []
            cells += [column.show(row) for column in table.columns]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cost(csv_file: Path) -> str:
    """Bytes to the accuracy that FedCLIP has after its last round, from the rows of `methods`.

    A round counts for a method once the mean over seeds and held-out domains is as high on both, the
    devices' test pictures and the held-out domain; bytes are a device's, both ways.
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
    lines = ["| what | rounds | MB a device, both ways | times fewer |", "|---|---|---|---|"]
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
            lines.append(f"| `{method}` | not in {rounds[-1]} | - | - |")
    return "\n".join(lines)


def put(page: str, name: str, text: str) -> str:
    """The page with the table between its marks; exits where they are missing."""
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, opened, rest = page.partition(first)
    _, closed, after = rest.partition(last)
    if not opened or not closed:
        sys.exit(f"{PAGE} has no marks {first} and {last}")
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
