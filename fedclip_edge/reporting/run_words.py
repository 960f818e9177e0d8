"""The result of one run in sentences.

Law: if accuracy fell, the text says that it fell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedclip_edge.reporting.figures import difference, number, percent, points, whole
from fedclip_edge.reporting.run_figures import (
    KINDS,
    Summary,
    apart,
    column_mean,
    is_demo,
    kinds,
    mean,
    pairs,
)

_NAMED = 10  # devices in one sentence


def progress(summary: Summary) -> str:
    """Say which rounds closed: "11 rounds and a vote", or "5 of 11 rounds"."""
    closed, rounds = summary["rounds_closed"], summary["rounds"] - summary["vote"]
    if closed < rounds:
        return f"{closed} of {counted(rounds)}"
    if not summary["vote"]:
        return counted(rounds)
    return f"{counted(rounds)} {'and a vote' if closed > rounds else 'without the vote'}"


def counted(rounds: int) -> str:
    """Return "1 round", "2 rounds", ..."""
    return f"{rounds} round{'s' * (rounds != 1)}"


def conclusion(summary: Summary) -> str:
    """Describe the run in one sentence with its figures; it says "fell" if accuracy fell."""
    count = len(summary["devices"])
    start = f"{progress(summary)}, {count} device{'s' * (count != 1)}"
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
    names, demo, others = names_of(summary), is_demo(summary), apart(summary)
    entries = [(names[device], entry) for device, entry in summary["devices"].items()]
    entries += [
        (f"the held-out {entry['domain']}" if demo else names[device], entry)
        for device, entry in others.items()
    ]
    said = comparison(summary)
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
    tests = [n for _, entry in entries if (n := number(entry["pictures"].get("test")))]
    if tests:
        count = " to ".join(dict.fromkeys(whole(n) for n in (min(tests), max(tests))))
        step = " to ".join(dict.fromkeys(f"{100 / n:.1f}" for n in (max(tests), min(tests))))
        said.append(
            f"Each {'style' if demo else 'device'} is tested on {count} pictures. One picture "
            f"changes its accuracy by {step} points, so small differences may be chance."
        )
    return said


def comparison(summary: Summary) -> list[str]:
    """Compare the fleet's model with zero-shot CLIP, FedCLIP as published and the devices alone.

    There is a sentence for the devices' own pictures, after one for the held-out style in the demo.
    The list is empty if neither FedCLIP nor the devices alone were trained to compare.
    """
    if not {"fedclip", "local"} & set(kinds(summary)):
        return []
    said = []
    if held_out := summary.get("held_out"):
        said.append(
            f"On the held-out style {held_out['domain']}, which no device has: "
            f"{_side_by_side(summary, held_out['accuracy'], _span(held_out['local_by_device']))}."
        )
    means = {kind: column_mean(summary, kind) for kind in KINDS}
    own = "styles" if is_demo(summary) else "pictures"
    text = f"On the devices' own {own}, on average: {_side_by_side(summary, means)}."
    if (gain := difference(means, "federated", "local")) is not None and gain < 0:
        text += (
            " A model trained alone is tested here on its own device's pictures only; it has "
            "learned nothing from the other devices."
        )
    return [*said, text]


def _side_by_side(summary: Summary, accuracy: Mapping[str, Any], span: str = "") -> str:
    """List the accuracies of the models that are compared; `span` follows the devices alone."""
    models = {
        "zero_shot": "zero-shot CLIP",
        "fedclip": "FedCLIP as published",
        "local": "a device that trains alone",
        "federated": f"the fleet with {summary['method']}",
        "personal": "the devices' personal models",
    }
    return ", ".join(
        f"{models[kind]} {percent(accuracy.get(kind))}{span * (kind == 'local')}"
        for kind in kinds(summary)
        if kind != "personal" or number(accuracy.get(kind)) is not None
    )


def _span(accuracies: Mapping[str, Any]) -> str:
    """Return " on average (71.1 to 74.7 %)"; it is empty if all are the same."""
    shares = [share for its in accuracies.values() if (share := number(its)) is not None]
    ends = [f"{100 * end:.1f}" for end in (min(shares), max(shares))]
    return f" on average ({ends[0]} to {ends[1]} %)" if ends[0] != ends[1] else ""


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


def names_of(summary: Summary) -> dict[str, str]:
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
