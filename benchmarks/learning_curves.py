"""Accuracy of the methods by the number of labelled pictures, beside the best reference there is.

    python benchmarks/learning_curves.py --data FOLDER --pacs PICTURES --bundle BUNDLE

Sets and shots are those of never_worse.py. Each set is split over ten devices with equal shares of
the classes, and nothing is withheld (floor 1). Figures are means over the seeds. `centralised` is
logistic regression on the pictures of all devices together (central.py). The trained methods run 30
rounds, and end without a vote: the vote would mix them with zero-shot. For a set with domains
(`--pacs`), each domain is held out in turn, the others are one device each, and all pictures are
used.

The limits are for the methods `gda` and `auto`, as far as they are measured. The exit code is 1 if
one is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import cells
from cells import ALL, CENTRAL, DEVICES, HELD_OUT, Cell, Found
from never_worse import SHOTS, add_sets, measured, sets
from results import PAGE, put

from fedclip_edge.learning import methods
from fedclip_edge.simulating.pool import Pool

TRAINED = ("clip-adapter@vote=off", "lowrank@vote=off", "linear@vote=off")
DEFAULTS = ("gda", "auto")  # the methods that the limits are for
METHODS = (
    *(name for name in DEFAULTS if name in methods.names()),
    "gda@vote=off",
    "ridge@vote=off",
    *TRAINED,
    CENTRAL,
)
# Least gain over zero-shot, in points, by set and shots.
GAINS = {("foodL", 4): 4.0, ("foodL", 16): 5.5, ("imagenetL", 4): 3.5}
WITHIN = 1.0  # points below the reference, at most
# The methods of which the best is compared; `auto` may choose a trained one.
REFERENCES: Mapping[str, Mapping[tuple[str, int], Sequence[str]]] = {
    "gda": {("foodL", 16): (CENTRAL,)},
    "auto": {("foodL", 16): (CENTRAL,), ("foodL", 4): TRAINED},
}
OF_DOMAINS = {HELD_OUT: 63.5, DEVICES: 85.0}  # accuracy in percent, for PACS with the stand-in


@dataclass(frozen=True)
class Point:
    """The mean over the cells of one method; accuracies are in percent."""

    source: str
    where: str
    shots: int
    method: str
    cells: int
    top1: float
    zero: float
    ece: float

    @property
    def gain(self) -> float:
        return self.top1 - self.zero


def grid(pools: Mapping[str, Pool], names: Sequence[str], seeds: int) -> Iterator[Cell]:
    """The cells that the sets can fill, one seed after the other."""
    for seed in range(seeds):
        for source, pool in pools.items():
            count = len(pool.domains) - 1
            if count > 1:
                fleets = [
                    Cell(source, "domain", count, ALL, seed, 1, "", domain)
                    for domain in pool.domains
                ]
            else:
                fleets = [Cell(source, "iid", 10, shots, seed, 1, "") for shots in SHOTS]
            for fleet in fleets:
                if cells.fills(pool, fleet):
                    yield from (replace(fleet, method=name) for name in names)


def points(found: Found) -> list[Point]:
    kept: dict[tuple[str, str, int, str], list[cells.Seen]] = {}
    for cell, its in found.items():
        for seen in its:
            kept.setdefault((cell.source, seen.where, cell.shots, cell.method), []).append(seen)
    return [
        Point(
            *key,
            len(its),
            100 * statistics.fmean(one.top1 for one in its),
            100 * statistics.fmean(one.zero_top1 for one in its),
            100 * statistics.fmean(one.ece for one in its),
        )
        for key, its in kept.items()
    ]


def checks(its: Sequence[Point]) -> list[tuple[str, bool]]:
    """Each limit that the points can be compared with, as a sentence, and True if it is kept."""
    known = {(one.source, one.where, one.shots, one.method): one for one in its}
    found = []
    for name in DEFAULTS:
        for (source, shots), least in GAINS.items():
            mine = known.get((source, DEVICES, shots, name))
            if mine is not None:
                text = f"{name}, {source}, {shots} shots: {mine.gain:+.2f} over zero-shot"
                found.append((f"{text} (at least {least:+.1f})", mine.gain >= least))
        for where, least in OF_DOMAINS.items():
            mine = known.get(("PACS", where, ALL, name))
            if mine is not None:
                text = f"{name}, PACS, {where}: {mine.top1:.2f} % (at least {least})"
                found.append((text, mine.top1 >= least))
        for (source, shots), others in REFERENCES[name].items():
            mine = known.get((source, DEVICES, shots, name))
            keys = [(source, DEVICES, shots, other) for other in others]
            best = max((known[key] for key in keys if key in known), key=_top1, default=None)
            if mine is not None and best is not None:
                text = (
                    f"{name}, {source}, {shots} shots: {mine.top1:.2f} %, {best.method} "
                    f"{best.top1:.2f} % (at most {WITHIN:g} below)"
                )
                found.append((text, best.top1 - mine.top1 <= WITHIN))
    return found


def _top1(one: Point) -> float:
    return one.top1


def tables(its: Sequence[Point]) -> str:
    """The points in Markdown: a table for each set, with a row for each method."""
    parts = []
    for source in dict.fromkeys(one.source for one in its):
        mine = [one for one in its if one.source == source]
        columns = list(dict.fromkeys((one.where, one.shots) for one in mine))
        heads = [
            where if shots == ALL else f"{shots} shot{'s'[: shots - 1]}" for where, shots in columns
        ]
        lines = [f"| {source} | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
        of = {(one.where, one.shots, one.method): one for one in mine}
        zero = {(one.where, one.shots): one.zero for one in mine}
        lines.append(f"| zero-shot | {' | '.join(f'{zero[key]:.2f}' for key in columns)} |")
        for name in dict.fromkeys(one.method for one in mine):
            shown = [of[where, shots, name] for where, shots in columns]
            figures = " | ".join(f"{one.top1:.2f} ({one.gain:+.2f})" for one in shown)
            lines.append(f"| {name if name == CENTRAL else f'`{name}`'} | {figures} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_sets(parser)
    parser.add_argument("--methods", help=f"names and settings [default: {','.join(METHODS)}]")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    options = parser.parse_args()
    pools = sets(parser, options)
    names = options.methods.split(",") if options.methods else METHODS
    its = points(measured(list(grid(pools, names, options.seeds)), pools, options))
    checked = checks(its)
    text = tables(its)
    print(f"\naccuracy in % (points above zero-shot)\n\n{text}\n")
    for limit, kept in checked:
        print(f"{'kept' if kept else 'MISSED'}: {limit}")
    if options.write:
        PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), "curves", text), "utf-8")
    if options.json:
        limits = [{"limit": limit, "kept": kept} for limit, kept in checked]
        print(json.dumps({"points": [asdict(one) for one in its], "limits": limits}))
    return 0 if all(kept for _, kept in checked) else 1


if __name__ == "__main__":
    sys.exit(main())
