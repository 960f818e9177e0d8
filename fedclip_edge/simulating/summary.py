"""Figures of a simulation over its seeds, for summary.json, the report and the terminal.

A spread is the sample standard deviation over the seeds; with one seed there is none.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedclip_edge.learning.evaluation import harmonic_mean
from fedclip_edge.learning.run_steps import exchanges
from fedclip_edge.simulating.results import Outcome
from fedclip_edge.simulating.settings import Line

MEAN = "mean"  # over the held-out domains


@dataclass(frozen=True)
class Figure:
    """A mean over the seeds, and its spread."""

    mean: float
    spread: float | None


@dataclass(frozen=True)
class OwnModels:
    """The devices' own models beside the shared one and zero-shot CLIP, on the same pictures."""

    zero_shot: Figure | None  # means of the devices' top-1
    shared: Figure | None
    own: Figure | None
    worst: Figure | None  # lowest of the devices' own models


@dataclass(frozen=True)
class Row:
    """The figures of one setting in one view, over the seeds; accuracies are fractions."""

    method: str
    line: Line  # "federated", "local" or "pooled"
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
    # Pictures of classes that the run does not have: the AUROC of the score against those of its
    # classes, and the fractions of both that are called unknown (learning/unknown.py).
    zero_shot_auroc: Figure | None
    auroc: Figure | None
    known_unknown: Figure | None
    others_unknown: Figure | None
    # On the devices' own test pictures, and on those of other devices (splits.OTHERS each); None if
    # no device has a model of its own.
    own_pictures: OwnModels | None
    other_pictures: OwnModels | None
    up_bytes: float  # mean per device, over all rounds
    down_bytes: float


def summarise(outcomes: Sequence[Outcome]) -> tuple[Row, ...]:
    """Make one row for each held-out domain, view and setting, in order of first occurrence.

    With several held-out domains, rows with the means over the domains come first.
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
        rows = [_row(MEAN, its, groups) for its in over.values()] + rows
    return tuple(rows)


def means(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that summarise the comparison: one for each view and setting."""
    return list(rows[: len({(row.view, row.method) for row in rows})])


def by_domain(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows behind the means by held-out domain; empty if there are no such means."""
    found: dict[str, list[Row]] = {}
    for row in rows[len(means(rows)) :]:
        found.setdefault(row.held_out, []).append(row)
    return found


def _row(
    held_out: str, its: Sequence[Outcome], groups: Mapping[tuple[str, str, str], Sequence[Outcome]]
) -> Row:
    first = its[0]

    def figure(what: str, name: str) -> Figure | None:
        found = [(one.run.seed, getattr(one, what)) for one in its]
        values = [(seed, None if one is None else getattr(one, name)) for seed, one in found]
        return over_seeds(values)

    def own_models(what: str) -> OwnModels | None:
        found = [(one.run.seed, getattr(one, what)) for one in its]
        if not any(compared for _, compared in found):
            return None

        def of(model: str, name: str = "mean") -> Figure | None:
            measured = [(seed, compared and getattr(compared, model)) for seed, compared in found]
            return over_seeds([(seed, one and getattr(one, name)) for seed, one in measured])

        return OwnModels(of("zero_shot"), of("shared"), of("own"), of("own", "worst"))

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
        line=first.run.setting.line,
        view=first.view,
        held_out=held_out,
        seeds=len({one.run.seed for one in its}),
        rounds=exchanges(first.run.setting.plan),
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
        own_pictures=own_models("own_pictures"),
        other_pictures=own_models("other_pictures"),
        zero_shot_auroc=figure("zero_shot_separation", "auroc"),
        auroc=figure("separation", "auroc"),
        known_unknown=figure("separation", "known_unknown"),
        others_unknown=figure("separation", "others_unknown"),
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
    return [asdict(row) for row in rows]


def percent(figure: Figure | None) -> str:
    """Format a fraction in percent, as "57.1" or "57.1±0.4"; "-" if there is none."""
    if figure is None:
        return "-"
    spread = "" if figure.spread is None else f"\N{PLUS-MINUS SIGN}{100 * figure.spread:.1f}"
    return f"{100 * figure.mean:.1f}{spread}"
