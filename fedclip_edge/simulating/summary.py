"""Figures of a simulation over its seeds, for summary.json and the table on the terminal.

A spread is the sample standard deviation over the seeds; with one seed there is none.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedclip_edge.learning.evaluation import harmonic_mean
from fedclip_edge.reporting.table import aligned
from fedclip_edge.simulating.results import Outcome

MEAN = "mean"  # over the held-out domains
_NOTE_COLUMNS = 100


@dataclass(frozen=True)
class Figure:
    """A mean over the seeds, and its spread."""

    mean: float
    spread: float | None


@dataclass(frozen=True)
class Row:
    """The figures of one setting in one view, over the seeds; accuracies are fractions."""

    method: str
    view: str
    held_out: str  # empty if none; MEAN for the mean over all of them
    seeds: int
    rounds: int
    zero_shot: Figure | None  # mean of the devices' zero-shot top-1
    mean: Figure | None  # mean of the devices' top-1
    weighted: Figure | None  # top-1 over all test pictures together
    worst: Figure | None
    macro_f1: Figure | None
    ece: Figure | None
    zero_shot_ece: Figure | None
    held_out_zero_shot: Figure | None
    held_out_top1: Figure | None
    harmonic: Figure | None  # of the means on base and new classes; only in rows of the view "new"
    up_bytes: float  # mean per device, over all rounds
    down_bytes: float


def summarise(outcomes: Sequence[Outcome]) -> tuple[Row, ...]:
    """Make one row for each held-out domain, view and setting, in order of first occurrence.

    With several held-out domains, rows with the means over the domains follow.
    """
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for one in outcomes:
        key = (one.run.held_out, one.view, one.run.setting.label)
        groups.setdefault(key, []).append(one)
    rows = [_row(key[0], its, groups) for key, its in groups.items()]
    domains = {held_out for held_out, _, _ in groups}
    if len(domains) > 1:
        over: dict[tuple[str, str], list[Outcome]] = {}
        for (_, view, label), its in groups.items():
            over.setdefault((view, label), []).extend(its)
        rows += [_row(MEAN, its, groups) for its in over.values()]
    return tuple(rows)


def _row(
    held_out: str, its: Sequence[Outcome], groups: Mapping[tuple[str, str, str], Sequence[Outcome]]
) -> Row:
    first = its[0]

    def figure(what: str, name: str) -> Figure | None:
        found = [(one.run.seed, getattr(one, what)) for one in its]
        return over_seeds([(seed, one and float(getattr(one, name))) for seed, one in found])

    def per_device(total: Callable[[Outcome], int]) -> float:
        return statistics.fmean(total(one) / one.devices for one in its)

    harmonic = None
    if first.view == "new":
        base = {
            (one.run.seed, one.run.held_out): one.fleet
            for key, group in groups.items()
            for one in group
            if key[1:] == ("base", first.run.setting.label)
        }
        pairs = [(one, base.get((one.run.seed, one.run.held_out))) for one in its]
        harmonic = over_seeds(
            [
                (one.run.seed, harmonic_mean(other.mean, one.fleet.mean))
                for one, other in pairs
                if one.fleet and other
            ]
        )
    return Row(
        method=first.run.setting.label,
        view=first.view,
        held_out=held_out,
        seeds=len({one.run.seed for one in its}),
        rounds=first.run.setting.plan.rounds,
        zero_shot=figure("zero_shot", "mean"),
        mean=figure("fleet", "mean"),
        weighted=figure("fleet", "weighted"),
        worst=figure("fleet", "worst"),
        macro_f1=figure("fleet", "macro_f1"),
        ece=figure("fleet", "ece"),
        zero_shot_ece=figure("zero_shot", "ece"),
        held_out_zero_shot=figure("held_out_zero_shot", "top1"),
        held_out_top1=figure("held_out", "top1"),
        harmonic=harmonic,
        up_bytes=per_device(lambda one: one.up_bytes),
        down_bytes=per_device(lambda one: one.down_bytes),
    )


def over_seeds(values: Sequence[tuple[int, float | None]]) -> Figure | None:
    """Average the values of each seed, then compute mean and spread over the seeds.

    `values` are pairs (seed, value). Pairs with None are left out; the result is None if no others
    remain.
    """
    by_seed: dict[int, list[float]] = {}
    for seed, value in values:
        if value is not None:
            by_seed.setdefault(seed, []).append(value)
    if not by_seed:
        return None
    means = [statistics.fmean(its) for its in by_seed.values()]
    spread = statistics.stdev(means) if len(means) > 1 else None
    return Figure(statistics.fmean(means), spread)


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Convert rows to JSON objects; a figure is null, or an object with a mean and a spread."""
    return [
        {
            name: vars(value) if isinstance(value, Figure) else value
            for name, value in vars(row).items()
        }
        for row in rows
    ]


_Column = tuple[str, str, Callable[[Row], str]]  # heading, unit, and formatter of a cell


def table(rows: Sequence[Row], width: int | None = None) -> str:
    """Format the final table: accuracies in percent, and kB per device over all rounds.

    If it needs more than `width` columns, it is split into several tables.
    """
    names: list[_Column] = [("method", "", lambda r: r.method)]
    if any(row.held_out for row in rows):
        names.append(("held out", "", lambda r: r.held_out))
    has_views = any(row.view for row in rows)
    if has_views:
        names.append(("classes", "", lambda r: r.view))
    own: list[_Column] = [
        ("rounds", "", lambda r: str(r.rounds)),
        ("zero-shot", "%", lambda r: percent(r.zero_shot)),
        ("top-1", "mean, %", lambda r: percent(r.mean)),
        ("all pictures", "%", lambda r: percent(r.weighted)),
        ("worst", "%", lambda r: percent(r.worst)),
        ("macro F1", "%", lambda r: percent(r.macro_f1)),
        ("ECE", "%", lambda r: percent(r.ece)),
    ]
    held_out: list[_Column] = [
        ("held-out", "zero-shot, %", lambda r: percent(r.held_out_zero_shot)),
        ("held-out", "top-1, %", lambda r: percent(r.held_out_top1)),
    ]
    harmonic: list[_Column] = [("harmonic", "mean, %", lambda r: percent(r.harmonic))]
    cost: list[_Column] = [
        ("up", "kB", lambda r: f"{r.up_bytes / 1000:.1f}"),
        ("down", "kB", lambda r: f"{r.down_bytes / 1000:.1f}"),
    ]
    has_held_out = any(row.held_out_top1 for row in rows)
    groups = [own, *([held_out] * has_held_out), *([harmonic] * has_views), cost]
    columns, parts = list(names), []
    for group in groups:
        parts.append(range(len(columns), len(columns) + len(group)))
        columns += group
    cells = [[head for head, _, _ in columns], [unit for _, unit, _ in columns]]
    cells += [[show(row) for _, _, show in columns] for row in rows]
    return aligned(cells, left=len(names), gap="  ", width=width, parts=parts)


def notes(rows: Sequence[Row], width: int | None = None) -> str:
    """Explain the headings of the table, in lines of at most `width` columns, or 100."""
    sentences = [
        "Accuracy is on test pictures.",
        "zero-shot: CLIP without training.",
        "top-1: mean accuracy of the devices; worst: the lowest of them.",
        "all pictures: accuracy over the test pictures of all devices together.",
        "macro F1: mean F1 score over the classes.",
        "ECE: expected calibration error, the mean gap of confidence to accuracy; lower is better.",
    ]
    if any(row.held_out for row in rows):
        sentences.append(
            "held out: the domain that no device trains on; held-out zero-shot and top-1: "
            "accuracies on its pictures."
        )
    if any(row.view for row in rows):
        sentences.append(
            "classes: base classes are trained, new ones are not; harmonic mean: of the accuracies "
            "on both."
        )
    if any(row.seeds > 1 for row in rows):
        sentences.append("±: standard deviation over the seeds.")
    sentences.append("up, down: bytes sent and received by a device in all rounds.")
    return textwrap.fill(" ".join(sentences), min(width or _NOTE_COLUMNS, _NOTE_COLUMNS))


def percent(figure: Figure | None) -> str:
    """Format a fraction in percent, as "57.1" or "57.1±0.4"; "-" if there is none."""
    if figure is None:
        return "-"
    spread = "" if figure.spread is None else f"\N{PLUS-MINUS SIGN}{100 * figure.spread:.1f}"
    return f"{100 * figure.mean:.1f}{spread}"
