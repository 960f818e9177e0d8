"""The page of one run, of a fleet or of the demo: one self-contained HTML file.

Law: if accuracy fell, the text says that it fell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedclip_edge.reporting.chart import NARROW_PX, WIDE_PX, Line, chart_layout
from fedclip_edge.reporting.figures import difference, number, percent, points, whole
from fedclip_edge.reporting.page import write_page
from fedclip_edge.reporting.run_figures import Summary, apart, is_demo, mean, pairs, worst_first

TEMPLATE = Path(__file__).resolve().with_name("run_page.html.j2")
_MEANS = ("zero_shot", "local", "federated", "federated_f1", "zero_shot_ece", "federated_ece")
# With more devices than this, a chart with a line for each cannot be read.
_LINES_MAX = 12
_WORST = 5
_NAMED = 10  # devices in one sentence


def write_run_page(path: Path, summary: Summary, examples: Mapping[str, Any] | None = None) -> None:
    """Write the page under a temporary name, then rename it.

    `summary` is described in run_figures.py. `examples` are the demo's pictures: values of the
    template's section for them. Raises OSError if the file cannot be written.
    """
    if len(summary["devices"]) > _LINES_MAX:
        summary = {**summary, "devices": worst_first(summary["devices"])}
    names = _names(summary)
    lines = _lines(summary, names)
    values = {
        "summary": summary,
        "demo": is_demo(summary),
        "apart": apart(summary),
        "names": names,
        "each_has_a_line": len(summary["devices"]) <= _LINES_MAX,
        "conclusion": conclusion(summary),
        "remarks": remarks(summary),
        "means": {kind: _column_mean(summary, kind) for kind in _MEANS},
        "charts": [
            ("wide", chart_layout(lines, *WIDE_PX, name_columns=18)),
            ("narrow", chart_layout(lines, *NARROW_PX, name_columns=0)),
        ],
        "cards": {},
        "kinds": (),
        "unreadable": (),
        **(examples or {}),
    }
    write_page(path, TEMPLATE, values)


# The conclusion of the run, in words


def conclusion(summary: Summary) -> str:
    """Describe the run in one sentence with its figures; it says "fell" if accuracy fell."""
    rounds, closed, count = summary["rounds"], summary["rounds_closed"], len(summary["devices"])
    done = f"{rounds}" if closed == rounds else f"{closed} of {rounds}"
    start = f"{done} round{'s' * (rounds != 1)}, {count} device{'s' * (count != 1)}"
    both = pairs(summary["devices"], "zero_shot", "federated")
    over = "" if len(both) in (0, count) else f" ({len(both)} of {count} measured)"
    what = "the accuracy" if count == 1 else f"the mean accuracy of the devices{over}"
    verb, figures = _change(both)
    text = f"{what} {verb}{figures}"
    if others := apart(summary):
        own, more = _change(pairs(others, "zero_shot", "federated"))
        # The same verb is not repeated: "rose from 1 to 2, the held-out style X from 3 to 4".
        said = "" if own == verb and more else f" {own}"
        text += f", {_others(summary, others)}{said}{more}"
    return f"{start}: {text}; no picture left its device."


def remarks(summary: Summary) -> list[str]:
    """List the remarks that a reader needs to judge the conclusion, one sentence each."""
    names, demo, others = _names(summary), is_demo(summary), apart(summary)
    entries = [(names[device], entry) for device, entry in summary["devices"].items()]
    entries += [
        (f"the held-out {entry['domain']}" if demo else names[device], entry)
        for device, entry in others.items()
    ]
    said = []
    losses = [
        (gain, name)
        for name, entry in entries
        if (gain := difference(entry["accuracy"], "federated", "zero_shot")) is not None
        and round(100 * gain, 1) < 0
    ]
    worse = [f"{name} ({points(gain)} points)" for gain, name in sorted(losses)]
    if worse:
        more = f" and {len(worse) - _NAMED} more" if len(worse) > _NAMED else ""
        said.append(f"Training made the accuracy worse on {', '.join(worse[:_NAMED])}{more}.")
    if compared := compared_with_local(summary):
        said.append(compared)
    tests = [n for _, entry in entries if (n := number(entry["pictures"].get("test")))]
    if tests:
        count = " to ".join(dict.fromkeys(whole(n) for n in (min(tests), max(tests))))
        step = " to ".join(dict.fromkeys(f"{100 / n:.1f}" for n in (max(tests), min(tests))))
        said.append(
            f"Each {'style' if demo else 'device'} is tested on {count} pictures. One picture "
            f"changes its accuracy by {step} points, so small differences may be chance."
        )
    return said


def compared_with_local(summary: Summary) -> str:
    """Compare the fleet's model with those of devices that train alone; empty without them.

    If the devices alone are not worse, the text says what their figures leave out, and what to try.
    """
    both = pairs(summary["devices"], "local", "federated")
    means = {"local": mean([a for a, _ in both]), "federated": mean([b for _, b in both])}
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
        other = "--method auto or gda" if is_demo(summary) else 'method = "auto" or "gda"'
        text += f" The method FedCLIP changes CLIP little; {other} often gains more."
    return text


def _change(accuracies: Sequence[tuple[float, float]]) -> tuple[str, str]:
    """Return a verb and the figures that follow it, for accuracies before and after."""
    old, new = mean([a for a, _ in accuracies]), mean([b for _, b in accuracies])
    if old is None or new is None:
        return "was not measured", ""
    if percent(old) == percent(new):
        return "stayed", f" at {percent(new)}"
    return "rose" if new > old else "fell", f" from {percent(old)} to {percent(new)}"


def _others(summary: Summary, others: Mapping[str, Any]) -> str:
    """Name the devices that do not train, in a sentence."""
    if is_demo(summary):
        return f"the held-out style {next(iter(others.values()))['domain']}"
    if len(others) == 1:
        return f"that of {next(iter(others))}, which only evaluates,"
    return f"that of {len(others)} devices that only evaluate"


# Reading the summary


def _names(summary: Summary) -> dict[str, str]:
    """Return the displayed name of each device.

    In the demo it is its style, with its id if styles are repeated; in a fleet it is the id.
    """
    if not is_demo(summary):
        return {device: device for device in [*summary["devices"], *apart(summary)]}
    domains = {device: str(entry["domain"]) for device, entry in summary["devices"].items()}
    known = list(domains.values())
    return {
        device: domain if known.count(domain) == 1 else f"{domain} ({device})"
        for device, domain in domains.items()
    }


def _column_mean(summary: Summary, kind: str) -> float | None:
    """Compute the mean of one kind of accuracy over all devices; None if a device has none."""
    found = pairs(summary["devices"], kind, kind)
    return mean([a for a, _ in found]) if len(found) == len(summary["devices"]) else None


def _lines(summary: Summary, names: Mapping[str, str]) -> list[Line]:
    """Return a line for each device; of many devices, their mean and the first of them."""
    devices = summary["devices"]
    shown = list(devices)
    lines = []
    if len(devices) > _LINES_MAX:
        rounds = range(summary["rounds_closed"] + 1)
        by_round = [
            mean([v for entry in devices.values() if (v := _at(entry, n)) is not None])
            for n in rounds
        ]
        before = mean([a for a, _ in pairs(devices, "zero_shot", "zero_shot")])
        lines.append(Line(f"mean of {len(devices)}", by_round, before, _WORST))
        measured = [d for d, entry in devices.items() if "federated" in entry["accuracy"]]
        shown = measured[:_WORST]
    lines += [
        Line(
            names[device],
            devices[device]["accuracy_by_round"],
            devices[device]["accuracy"].get("zero_shot"),
            style,
        )
        for style, device in enumerate(shown)
    ]
    others = apart(summary)
    if len(others) > _LINES_MAX:
        others = dict(list(worst_first(others).items())[:_WORST])
    for device, entry in others.items():
        name = entry["domain"] if is_demo(summary) else names[device]
        zero_shot = entry["accuracy"].get("zero_shot")
        lines.append(Line(name, entry["accuracy_by_round"], zero_shot, "held-out"))
    return lines


def _at(entry: Mapping[str, Any], round: int) -> float | None:
    by_round = entry["accuracy_by_round"]
    return number(by_round[round]) if round < len(by_round) else None
