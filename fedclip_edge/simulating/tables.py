"""The tables of a simulation on the terminal: the means, then the accuracy by held-out domain."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from fedclip_edge.reporting.names import wrapped
from fedclip_edge.reporting.table import aligned
from fedclip_edge.simulating.summary import Figure, Row, by_domain, means, percent

_NOTE_COLUMNS = 100
_DOMAIN_COLUMNS = 14  # a longer domain continues in the next line of the heading
_MODELS = {"zero_shot": "zero-shot", "shared": "shared", "own": "own", "worst": "worst own"}
_Column = tuple[str, str, Callable[[Row], str]]  # heading, unit, and formatter of a cell


def tables(rows: Sequence[Row], width: int | None = None) -> str:
    """Format the figures: accuracies in percent, and kB per device over all rounds.

    The means over devices, held-out domains and seeds come first. A table that needs more than
    `width` columns is split into several.
    """
    parts = [_summary(means(rows), width)]
    if owners := [row for row in means(rows) if row.other_pictures]:
        title = (
            "Each device's own model on its own test pictures and on those of other devices, mean "
            "of the devices, in %:"
        )
        parts.append(_filled(title, width))
        parts.append(_own_models(owners, width))
    if domains := by_domain(rows):
        seeds = max(row.seeds for row in rows)
        over = f" and {seeds} seeds" * (seeds > 1)
        parts.insert(0, _filled(f"Means over {len(domains)} held-out domains{over}:", width))
        for title, zero_shot, top1 in (
            (
                "Accuracy on the devices' own test pictures, mean of the devices",
                "zero_shot",
                "mean",
            ),
            ("Accuracy on the held-out domain", "held_out_zero_shot", "held_out_top1"),
        ):
            parts.append(_filled(f"{title}, in %, by held-out domain:", width))
            parts.append(_matrix(rows, zero_shot, top1, width))
    return "\n\n".join(parts)


def notes(rows: Sequence[Row], width: int | None = None) -> str:
    """Explain the headings of the tables, in lines of at most `width` columns, or 100."""
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
    if any(row.other_pictures for row in rows):
        sentences.append(
            "own: the device's own model; shared: the fleet's model on the same pictures; others': "
            "test pictures of other devices, at most 500 per device, which a real device never has."
        )
    if any(row.auroc for row in rows):
        sentences.append(
            "AUROC: probability that a picture of the classes has a higher score than a picture of "
            "none of them; 50 is chance. unknown: fractions of both that the model calls unknown, "
            "- without a threshold."
        )
    if any(row.seeds > 1 for row in rows):
        sentences.append("±: standard deviation over the seeds.")
    sentences.append("up, down: bytes sent and received by a device in all rounds.")
    return _filled(" ".join(sentences), width)


def _summary(rows: Sequence[Row], width: int | None) -> str:
    names: list[_Column] = [("method", "", lambda r: r.method)]
    if rows[0].view:
        names.append(("classes", "", lambda r: r.view))
    own: list[_Column] = [
        ("zero-shot", "%", lambda r: percent(r.zero_shot)),
        ("top-1", "mean, %", lambda r: percent(r.mean)),
        ("worst", "%", lambda r: percent(r.worst)),
    ]
    held_out: list[_Column] = [
        ("held-out", "zero-shot, %", lambda r: percent(r.held_out_zero_shot)),
        ("held-out", "top-1, %", lambda r: percent(r.held_out_top1)),
    ]
    unknown: list[_Column] = [
        ("AUROC", "zero-shot, %", lambda r: percent(r.zero_shot_auroc)),
        ("AUROC", "%", lambda r: percent(r.auroc)),
        ("unknown", "of known, %", lambda r: percent(r.known_unknown)),
        ("unknown", "of others, %", lambda r: percent(r.others_unknown)),
    ]
    harmonic: list[_Column] = [("harmonic", "mean, %", lambda r: percent(r.harmonic))]
    more: list[_Column] = [
        ("all pictures", "%", lambda r: percent(r.weighted)),
        ("macro F1", "%", lambda r: percent(r.macro_f1)),
        ("ECE", "%", lambda r: percent(r.ece)),
    ]
    cost: list[_Column] = [
        ("rounds", "", lambda r: str(r.rounds)),
        ("up", "kB", lambda r: f"{r.up_bytes / 1000:.1f}"),
        ("down", "kB", lambda r: f"{r.down_bytes / 1000:.1f}"),
    ]
    has_held_out = any(row.held_out_top1 for row in rows)
    has_others = any(row.auroc for row in rows)
    groups = [own, *([held_out] * has_held_out), *([harmonic] * bool(rows[0].view))]
    groups += [*([unknown] * has_others), more, cost]
    columns, parts = list(names), []
    for group in groups:
        parts.append(range(len(columns), len(columns) + len(group)))
        columns += group
    cells = [[head for head, _, _ in columns], [unit for _, unit, _ in columns]]
    cells += [[show(row) for _, _, show in columns] for row in rows]
    return aligned(cells, left=len(names), gap="  ", width=width, parts=parts)


def _own_models(rows: Sequence[Row], width: int | None) -> str:
    """Format the accuracies of the devices' own models; every row has some."""
    names: list[_Column] = [("method", "", lambda r: r.method)]
    if rows[0].view:
        names.append(("classes", "", lambda r: r.view))
    columns, parts = list(names), []
    for whose, what, models in (
        ("own pictures", "own_pictures", ("zero_shot", "shared", "own")),
        ("others'", "other_pictures", ("zero_shot", "shared", "own", "worst")),
    ):
        parts.append(range(len(columns), len(columns) + len(models)))
        columns += [(whose, _MODELS[model], _of(what, model)) for model in models]
    cells = [[head for head, _, _ in columns], [model for _, model, _ in columns]]
    cells += [[show(row) for _, _, show in columns] for row in rows]
    return aligned(cells, left=len(names), gap="  ", width=width, parts=parts)


def _of(pictures: str, model: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        compared = getattr(row, pictures)
        return percent(compared and getattr(compared, model))

    return show


def _matrix(rows: Sequence[Row], zero_shot: str, top1: str, width: int | None) -> str:
    """Format a figure of every method and view, with zero-shot above them, by held-out domain."""
    domains = by_domain(rows)
    views = list(dict.fromkeys(row.view for row in rows))
    has_views = views != [""]

    def line(name: str, view: str, pick: Callable[[Sequence[Row]], Figure | None]) -> list[str]:
        shown = [percent(pick([r for r in its if r.view == view])) for its in domains.values()]
        return [name, *([view] * has_views), *shown]

    def of(method: str) -> Callable[[Sequence[Row]], Figure | None]:
        return lambda its: next((getattr(r, top1) for r in its if r.method == method), None)

    methods = list(dict.fromkeys(row.method for row in rows))
    lines = []
    for view in views:
        if "zeroshot" not in methods:
            lines.append(
                line("zero-shot", view, lambda its: getattr(its[0], zero_shot) if its else None)
            )
        lines += [line(method, view, of(method)) for method in methods]
    heads = [wrapped(name, _DOMAIN_COLUMNS) for name in domains]
    deepest = max(map(len, heads))
    for n in range(deepest):
        first = ["method", *(["classes"] * has_views)] if n == 0 else [""] * (1 + has_views)
        lines.insert(n, [*first, *((head + [""] * deepest)[n] for head in heads)])
    return aligned(lines, left=1 + has_views, gap="  ", width=width)


def _filled(text: str, width: int | None) -> str:
    return textwrap.fill(text, min(width or _NOTE_COLUMNS, _NOTE_COLUMNS))
