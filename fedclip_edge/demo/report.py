"""The report of a demo run: one self-contained HTML file.

Law: if accuracy fell, the text says that it fell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedclip_edge.demo.examples import KINDS, Example, thumbnail
from fedclip_edge.reporting.chart import NARROW_PX, WIDE_PX, Line, chart_layout
from fedclip_edge.reporting.figures import difference, number, percent, points, whole
from fedclip_edge.reporting.page import write_page

TEMPLATE = Path(__file__).resolve().with_name("report.html.j2")
_MEANS = ("zero_shot", "local", "federated", "federated_f1", "zero_shot_ece", "federated_ece")


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
    lines = _lines(summary, names)
    values = {
        "summary": summary,
        "names": names,
        "conclusion": conclusion(summary),
        "remarks": remarks(summary),
        "means": {kind: _column_mean(summary, kind) for kind in _MEANS},
        "charts": [
            ("wide", chart_layout(lines, *WIDE_PX, name_columns=18)),
            ("narrow", chart_layout(lines, *NARROW_PX, name_columns=0)),
        ],
        "cards": cards,
        "kinds": KINDS,
        "unreadable": unreadable,
    }
    write_page(path, TEMPLATE, values)


# The conclusion of the run, in words


def conclusion(summary: Mapping[str, Any]) -> str:
    """Describe the run in one sentence with its figures; it says "fell" if accuracy fell."""
    rounds, closed, count = summary["rounds"], summary["rounds_closed"], len(summary["devices"])
    done = f"{rounds}" if closed == rounds else f"{closed} of {rounds}"
    start = f"{done} round{'s' * (rounds != 1)}, {count} device{'s' * (count != 1)}"
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
    said = []
    worse = [
        f"{name} ({points(gain)} points)"
        for name, entry in entries
        if (gain := difference(entry["accuracy"], "federated", "zero_shot")) is not None
        and round(100 * gain, 1) < 0
    ]
    if worse:
        said.append(f"Training made the accuracy worse on {', '.join(worse)}.")
    if compared := compared_with_local(summary):
        said.append(compared)
    tests = [n for _, entry in entries if (n := number(entry["pictures"].get("test")))]
    if tests:
        count = " to ".join(dict.fromkeys(whole(n) for n in (min(tests), max(tests))))
        step = " to ".join(dict.fromkeys(f"{100 / n:.1f}" for n in (max(tests), min(tests))))
        said.append(
            f"Each style is tested on {count} pictures. One picture changes its accuracy by "
            f"{step} points, so small differences may be chance."
        )
    return said


def compared_with_local(summary: Mapping[str, Any]) -> str:
    """Compare the fleet's model with those of devices that train alone; empty without them.

    If the devices alone are not worse, the text says what their figures leave out, and what to try.
    """
    pairs = _pairs(summary, "local", "federated")
    means = {"local": _mean([a for a, _ in pairs]), "federated": _mean([b for _, b in pairs])}
    if (gain := difference(means, "federated", "local")) is None:
        return ""
    apart = points(gain).lstrip("+\N{MINUS SIGN}")
    compared = f"{apart} points {'less' if gain > 0 else 'more'} than"
    text = (
        "If each device trains alone, without the others, their mean accuracy is "
        f"{percent(means['local'])}: "
        f"{'the same as' if apart == '0.0' else compared} with the federated model."
    )
    if gain > 0:
        return text
    text += (
        " A model trained alone is tested on its own device's pictures only; it has learned nothing "
        "from the other devices."
    )
    if summary["method"] == "fedclip":
        text += " The method FedCLIP changes CLIP little; --method auto or gda often gains more."
    return text


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


def _lines(summary: Mapping[str, Any], names: Mapping[str, str]) -> list[Line]:
    lines = [
        Line(names[device], entry["accuracy_by_round"], entry["accuracy"].get("zero_shot"), style)
        for style, (device, entry) in enumerate(summary["devices"].items())
    ]
    if held_out := summary.get("held_out"):
        zero_shot = held_out["accuracy"].get("zero_shot")
        by_round = held_out["accuracy_by_round"]
        lines.append(Line(held_out["domain"], by_round, zero_shot, "held-out"))
    return lines
