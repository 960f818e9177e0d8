"""The report of a demo run: one self-contained HTML file.

Law: if accuracy fell, the text says that it fell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedclip_edge.demo.examples import KINDS, Example, thumbnail
from fedclip_edge.demo.summary import progress
from fedclip_edge.reporting.chart import NARROW_PX, WIDE_PX, Chart, Line, chart_layout
from fedclip_edge.reporting.figures import difference, number, percent, points, whole
from fedclip_edge.reporting.page import write_page

TEMPLATE = Path(__file__).resolve().with_name("report.html.j2")
_MEANS = (
    "zero_shot",
    "fedclip",
    "local",
    "federated",
    "personal",
    "federated_f1",
    "zero_shot_ece",
    "federated_ece",
)


def write_report(path: Path, summary: Mapping[str, Any], examples: Sequence[Example]) -> None:
    """Write the page under a temporary name, then rename it.

    `summary` is the content of summary.json. Examples of a device that is not in the summary are
    shown as examples of the held-out device. A picture that cannot be read is left out, and the
    page lists it. Raises OSError if the file cannot be written.
    """
    names = _names(summary)
    cards: dict[str, list[tuple[Example, str]]] = {}
    unreadable = []
    for example in examples:
        embedded = thumbnail(example.picture)
        if embedded is None:
            unreadable.append(example.picture.name)
        else:
            cards.setdefault(example.device, []).append((example, embedded))
    values = {
        "summary": summary,
        "names": names,
        "conclusion": conclusion(summary),
        "remarks": remarks(summary),
        "means": {kind: _column_mean(summary, kind) for kind in _MEANS},
        "progress": progress(summary),
        "held_out_charts": _charts(_held_out_lines(summary)),
        "charts": _charts(_device_lines(summary, names)),
        "cards": cards,
        "kinds": KINDS,
        "unreadable": unreadable,
    }
    write_page(path, TEMPLATE, values)


# The conclusion of the run, in words


def conclusion(summary: Mapping[str, Any]) -> str:
    """Describe the run in one sentence with its figures; it says "fell" if accuracy fell."""
    count = len(summary["devices"])
    start = f"{progress(summary)}, {count} device{'s' * (count != 1)}"
    pairs = _pairs(summary, "zero_shot", "federated")
    over = "" if len(pairs) in (0, count) else f" ({len(pairs)} of {count} measured)"
    what = "the accuracy" if count == 1 else f"the mean accuracy of the devices{over}"
    before, after = _mean([a for a, _ in pairs]), _mean([b for _, b in pairs])
    verb, figures = _change(before, after)
    text = f"{what} {verb}{figures}"
    if held_out := summary.get("held_out"):
        accuracy = held_out["accuracy"]
        own, more = _change(accuracy.get("zero_shot"), accuracy.get("federated"))
        # The same verb is not repeated: "rose from 1 to 2, the held-out style X from 3 to 4".
        said = "" if own == verb and more else f" {own}"
        text += f", the held-out style {held_out['domain']}{said}{more}"
    return f"{start}: {text}; no picture left its device."


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """List the remarks that a reader needs to judge the conclusion, one sentence each."""
    names = _names(summary)
    entries = [(names[device], entry) for device, entry in summary["devices"].items()]
    if held_out := summary.get("held_out"):
        entries.append((f"the held-out {held_out['domain']}", held_out))
    said = comparison(summary)
    worse = [
        f"{name} ({points(gain)} points)"
        for name, entry in entries
        if (gain := difference(entry["accuracy"], "federated", "zero_shot")) is not None
        and round(100 * gain, 1) < 0
    ]
    if worse:
        said.append(f"Training made the accuracy worse on {', '.join(worse)}.")
    tests = [n for _, entry in entries if (n := number(entry["pictures"].get("test")))]
    if tests:
        count = " to ".join(dict.fromkeys(whole(n) for n in (min(tests), max(tests))))
        step = " to ".join(dict.fromkeys(f"{100 / n:.1f}" for n in (max(tests), min(tests))))
        said.append(
            f"Each style is tested on {count} pictures. One picture changes its accuracy by "
            f"{step} points, so small differences may be chance."
        )
    return said


def comparison(summary: Mapping[str, Any]) -> list[str]:
    """Compare the fleet's model with zero-shot CLIP, FedCLIP as published and the devices alone.

    There is a sentence for the held-out style and one for the devices' own. The list is empty if
    the baselines were not trained.
    """
    if summary["fedclip_rounds"] is None:
        return []
    said = []
    if held_out := summary.get("held_out"):
        said.append(
            f"On the held-out style {held_out['domain']}, which no device has: "
            f"{_side_by_side(summary, held_out['accuracy'], _span(held_out['local_by_device']))}."
        )
    means = {kind: _column_mean(summary, kind) for kind in _MEANS}
    text = f"On the devices' own styles, on average: {_side_by_side(summary, means)}."
    if (gain := difference(means, "federated", "local")) is not None and gain < 0:
        text += (
            " A model trained alone is tested here on its own device's pictures only; it has "
            "learned nothing from the other devices."
        )
    return [*said, text]


def _side_by_side(summary: Mapping[str, Any], accuracy: Mapping[str, Any], span: str = "") -> str:
    """List the accuracies of the models that are compared; `span` follows the devices alone."""
    text = (
        f"zero-shot CLIP {percent(accuracy.get('zero_shot'))}, FedCLIP as published "
        f"{percent(accuracy.get('fedclip'))}, a device that trains alone "
        f"{percent(accuracy.get('local'))}{span}, the fleet with {summary['method']} "
        f"{percent(accuracy.get('federated'))}"
    )
    if number(accuracy.get("personal")) is not None:
        text += f", the devices' personal models {percent(accuracy.get('personal'))}"
    return text


def _span(accuracies: Mapping[str, Any]) -> str:
    """Return " on average (71.1 to 74.7 %)"; it is empty if all are the same."""
    shares = [share for its in accuracies.values() if (share := number(its)) is not None]
    ends = [f"{100 * end:.1f}" for end in (min(shares), max(shares))]
    return f" on average ({ends[0]} to {ends[1]} %)" if ends[0] != ends[1] else ""


def _change(before: object, after: object) -> tuple[str, str]:
    """Return a verb and the figures that follow it."""
    old, new = number(before), number(after)
    if old is None or new is None:
        return "was not measured", ""
    if percent(old) == percent(new):
        return "stayed", f" at {percent(new)}"
    return "rose" if new > old else "fell", f" from {percent(old)} to {percent(new)}"


# Reading the summary


def _names(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the displayed name of each device: its style, with its id if styles are repeated."""
    domains = {device: str(entry["domain"]) for device, entry in summary["devices"].items()}
    known = list(domains.values())
    return {
        device: domain if known.count(domain) == 1 else f"{domain} ({device})"
        for device, domain in domains.items()
    }


def _pairs(summary: Mapping[str, Any], one: str, other: str) -> list[tuple[float, float]]:
    """List (one, other) accuracies of the devices that have both, so that means are comparable."""
    accuracies = [entry["accuracy"] for entry in summary["devices"].values()]
    both = [(number(accuracy.get(one)), number(accuracy.get(other))) for accuracy in accuracies]
    return [(a, b) for a, b in both if a is not None and b is not None]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _column_mean(summary: Mapping[str, Any], kind: str) -> float | None:
    """Compute the mean of one kind of accuracy over all devices; None if a device has none."""
    pairs = _pairs(summary, kind, kind)
    return _mean([a for a, _ in pairs]) if len(pairs) == len(summary["devices"]) else None


def _device_lines(summary: Mapping[str, Any], names: Mapping[str, str]) -> list[Line]:
    return [
        Line(names[device], entry["accuracy_by_round"], entry["accuracy"].get("zero_shot"), style)
        for style, (device, entry) in enumerate(summary["devices"].items())
    ]


def _held_out_lines(summary: Mapping[str, Any]) -> list[Line]:
    """List the lines of the held-out style: the fleet, FedCLIP as published and zero-shot CLIP."""
    if not (held_out := summary.get("held_out")):
        return []
    own_style = len(summary["devices"])  # the first that no device has
    lines = [
        Line(f"the fleet, {summary['method']}", held_out["accuracy_by_round"], None, "held-out")
    ]
    if by_round := held_out.get("fedclip_by_round"):
        lines.append(Line("FedCLIP as published", by_round, None, own_style))
    zero_shot = held_out["accuracy"].get("zero_shot")
    return [*lines, Line("zero-shot", [zero_shot], None, "zero-shot")]


def _charts(lines: Sequence[Line]) -> list[tuple[str, Chart]]:
    return [
        ("wide", chart_layout(lines, *WIDE_PX, name_columns=20)),
        ("narrow", chart_layout(lines, *NARROW_PX, name_columns=0)),
    ]
