"""Shows that a method is never worse than zero-shot CLIP, on many fleets.

    python benchmarks/never_worse.py --data FOLDER --pacs PICTURES --bundle BUNDLE

FOLDER has sets of features as .npz files; `--features FILE.npz` adds one (the arrays are those of
`fedclip-edge simulate --features`). A set is split over 5, 10, 50 and 100 devices, iid and with
label skew, with 1 to 16 shots: labelled pictures of each class in the whole fleet, for training and
validation together. `all` is every picture of a set that has more than 16. A set with domains is
also split by domain, with each domain held out in turn. Floors are the `min_per_class` of devices
and plan. A cell is one run, compared with zero-shot on the same test pictures.

Left out are cells that the set cannot fill: some class has fewer pictures than the shots need, or
there are fewer training pictures than devices.

The columns of the table:

- cells: runs, over splits, numbers of devices and seeds.
- zero-shot, mean gain, worst: top-1 accuracy of zero-shot in percent, and percentage points that
  the run's last model is above it, as the mean over the cells and in the worst cell.
- below, more than one SE: cells in which zero-shot is better by more than the standard error of the
  difference. For b pictures that only the run names correctly and c that only zero-shot does, of n,
  the difference is (b - c) / n and its standard error sqrt(b + c) / n.
- more than one point: cells in which zero-shot is better by more than one percentage point.
- ECE, NLL: calibration error and mean negative log-likelihood, of the run and of zero-shot.

The limits, for each set, method and floor: at most 2 % of the cells below by more than one standard
error, none by more than one point, and a mean ECE of at most that of zero-shot, to a tenth of a
point.
The exit code is 1 if one is broken.

With `--results FILE`, each finished cell is a line of FILE, and the same command continues where it
was interrupted. Results of other code are not used; `--code NAME` gives the code a name instead of
the hash of its files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cells
from cells import ALL, Cell, Found, Seen
from results import put

from fedclip_edge.simulating.pool import Pool
from fedclip_edge.simulating.settings import parse_settings

PAGE = cells.ROOT / "docs" / "explanation" / "never-worse.md"
SPLITS = ("iid", "dirichlet:0.5", "dirichlet:0.1", "dirichlet:0.05")
DEVICES = (5, 10, 50, 100)
SHOTS = (1, 2, 4, 8, 16)
FLOORS = (1, 5)
SHARE_LIMIT = 0.02  # of the cells, below by more than one standard error
POINT_LIMIT = 0.01  # below zero-shot, in any cell
EVERY = -1  # shots: a row over all of them
_TOLD_S = 60.0  # how often the number of cells is printed


@dataclass(frozen=True)
class Row:
    """A summary of cells; shares are fractions from 0 to 1."""

    source: str
    method: str
    floor: int
    shots: int
    cells: int
    zero: float
    gain: float
    worst: float
    beyond_error: int  # cells below zero-shot by more than one standard error
    beyond_point: int  # cells below zero-shot by more than POINT_LIMIT
    ece: float
    zero_ece: float
    nll: float
    zero_nll: float


def grid(
    pools: Mapping[str, Pool], methods: Sequence[str], seeds: int, *, quick: bool
) -> Iterator[Cell]:
    """The cells that the sets can fill, one seed after the other; with `quick` a small part."""
    for seed in range(seeds):
        for name, pool in pools.items():
            for fleet in fleets(name, pool, seed, quick=quick):
                if cells.fills(pool, fleet):
                    for floor in FLOORS:
                        for method in methods:
                            yield replace(fleet, floor=floor, method=method)


def fleets(name: str, pool: Pool, seed: int, *, quick: bool) -> Iterator[Cell]:
    """The fleets of a set and a seed, also those that it cannot fill."""
    shots = (*SHOTS, *([ALL] if cells.most_shots(pool) > SHOTS[-1] else []))
    for split in SPLITS[0::2] if quick else SPLITS:
        for devices in DEVICES[0::2] if quick else DEVICES:
            for number in shots[0::2] if quick else shots:
                yield Cell(name, split, devices, number, seed, 0, "")
    if len(pool.domains) > 2 and not quick:
        for domain in pool.domains:
            yield Cell(name, "domain", len(pool.domains) - 1, ALL, seed, 0, "", domain)


def rows(found: Found) -> list[Row]:
    """Summarise by set, method and floor: a row for each number of shots, and one for all."""
    kept: dict[tuple[str, str, int], dict[int, list[Seen]]] = {}
    for cell, its in found.items():
        for seen in its:
            source = f"{cell.source}, {seen.where}" if cell.held_out else cell.source
            of_shots = kept.setdefault((source, cell.method, cell.floor), {})
            of_shots.setdefault(cell.shots, []).append(seen)
    made = []
    for key, of_shots in kept.items():
        made += [summary(*key, shots, of_shots[shots]) for shots in sorted(of_shots, key=_place)]
        if len(of_shots) > 1:
            made.append(summary(*key, EVERY, [seen for its in of_shots.values() for seen in its]))
    return made


def _place(shots: int) -> int:
    return sys.maxsize if shots == ALL else shots


def summary(source: str, method: str, floor: int, shots: int, seen: Sequence[Seen]) -> Row:
    gains = [one.gain for one in seen]
    mean = {
        name: statistics.fmean(getattr(one, name) for one in seen)
        for name in ("ece", "zero_ece", "nll", "zero_nll")
    }
    return Row(
        source,
        method,
        floor,
        shots,
        len(seen),
        statistics.fmean(one.zero_top1 for one in seen),
        statistics.fmean(gains),
        min(gains),
        sum(one.gain < -one.error for one in seen),
        sum(gain < -POINT_LIMIT for gain in gains),
        **mean,
    )


def broken(row: Row) -> list[str]:
    """The limits that a row over all shots breaks, one sentence each."""
    where = f"{row.method} on {row.source} with floor {row.floor}"
    found = []
    if row.beyond_error > SHARE_LIMIT * row.cells:
        found.append(
            f"{where}: {row.beyond_error} of {row.cells} cells are below zero-shot by more than "
            f"one standard error (at most {SHARE_LIMIT:.0%})"
        )
    if row.beyond_point:
        found.append(
            f"{where}: {row.beyond_point} of {row.cells} cells are below zero-shot by more than "
            f"{100 * POINT_LIMIT:g} point; the worst by {-100 * row.worst:.2f}"
        )
    if round(100 * row.ece, 1) > round(100 * row.zero_ece, 1):
        found.append(
            f"{where}: the mean ECE is {100 * row.ece:.2f} %, that of zero-shot "
            f"{100 * row.zero_ece:.2f} %"
        )
    return found


def totals(its: Sequence[Row]) -> list[Row]:
    """The rows that the limits are for: one for each set, method and floor."""
    last = {(row.source, row.method, row.floor): row for row in its}
    return list(last.values())


HEAD = (
    "set",
    "method",
    "floor",
    "shots",
    "cells",
    "zero-shot, %",
    "mean gain",
    "worst",
    "below, more than one SE",
    "more than one point",
    "ECE, %",
    "of zero-shot",
    "NLL",
    "of zero-shot",
    "limits",
)


def table(its: Iterable[Row], limited: Sequence[Row]) -> str:
    """The rows in Markdown; the rows in `limited` say if the limits are kept."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for row in its:
        shots = {ALL: "all", EVERY: "together"}.get(row.shots, str(row.shots))
        verdict = ("broken" if broken(row) else "kept") if row in limited else ""
        figures = (
            row.source,
            f"`{row.method}`",
            row.floor,
            shots,
            row.cells,
            f"{100 * row.zero:.2f}",
            f"{100 * row.gain:+.2f}",
            f"{100 * row.worst:+.2f}",
            f"{row.beyond_error} ({row.beyond_error / row.cells:.1%})",
            row.beyond_point,
            f"{100 * row.ece:.2f}",
            f"{100 * row.zero_ece:.2f}",
            f"{row.nll:.3f}",
            f"{row.zero_nll:.3f}",
            verdict,
        )
        lines.append(f"| {' | '.join(map(str, figures))} |")
    return "\n".join(lines)


def add_sets(parser: argparse.ArgumentParser) -> None:
    """Add the options that `sets` reads, and those of the run."""
    parser.add_argument("--data", type=Path, help="folder of .npz files")
    parser.add_argument("--features", type=Path, action="append", default=[], help="an .npz file")
    parser.add_argument("--pacs", type=Path, help="pictures, as DOMAIN/CLASS/FILE; needs --bundle")
    parser.add_argument("--bundle", type=Path, help="bundle with the encoder for --pacs")
    parser.add_argument("--cache", type=Path, help="file of the features of --pacs")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--results", type=Path, help="file of results, to continue from")
    parser.add_argument("--code", help="name of this version of the code in --results")
    parser.add_argument("--json", action="store_true")


def sets(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, Pool]:
    """Read the sets that the options name; exits if there are none."""
    files = [*(sorted(options.data.glob("*.npz")) if options.data else []), *options.features]
    pools = {file.stem: cells.read_array_file(file) for file in files}
    if options.pacs is not None:
        if options.bundle is None:
            parser.error("--pacs needs --bundle")
        with tempfile.TemporaryDirectory() as folder:
            cache = options.cache or Path(folder) / "features.sqlite"
            pools["PACS"] = cells.encoded(options.pacs, options.bundle, cache)
    if not pools:
        parser.error("there is no set of pictures: give --data, --features or --pacs")
    return pools


def measured(
    todo: Sequence[Cell], pools: Mapping[str, Pool], options: argparse.Namespace
) -> dict[Cell, Sequence[Seen]]:
    """Run the cells that `--results` does not have; return the results of all."""
    code = options.code or cells.code_version()
    known = cells.read_results(options.results, code)
    left = [cell for cell in todo if cell not in known]
    found: dict[Cell, Sequence[Seen]] = dict(known)
    began = told_at = time.perf_counter()
    cores = len(os.sched_getaffinity(0))
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {cores} cores, code {code}; "
        f"{len(todo)} cells, {len(todo) - len(left)} of them measured before",
        flush=True,
    )
    path, count = options.results, 0
    text = path.read_text(encoding="utf-8") if path and path.exists() else ""
    with Path(path or os.devnull).open("a", encoding="utf-8") as file:
        if text and not text.endswith("\n"):
            file.write("\n")  # after a line that was being written when the benchmark was killed
        for group in cells.run(left, pools, options.jobs):
            for cell, seen in group:
                found[cell] = seen
                file.write(cells.result_line(cell, seen, code))
            file.flush()
            count += len(group)
            if time.perf_counter() - told_at > _TOLD_S:
                told_at = time.perf_counter()
                print(f"{count:6} of {len(left)} cells, {told_at - began:.0f} s", flush=True)
    return {cell: found[cell] for cell in todo}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_sets(parser)
    parser.add_argument("--methods", default="gda", help="as for simulate [default: gda]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a fixed small part of the cells")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    options = parser.parse_args()
    pools = sets(parser, options)
    methods = [setting.label for setting in parse_settings(options.methods, None)]
    found = measured(list(grid(pools, methods, options.seeds, quick=options.quick)), pools, options)
    its = rows(found)
    limited = totals(its)
    missed = [sentence for row in limited for sentence in broken(row)]
    text = table(its, limited)
    print(f"\n{text}\n")
    for sentence in missed:
        print(sentence)
    if options.write:
        PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), "never-worse", text), "utf-8")
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in its], "broken": missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
