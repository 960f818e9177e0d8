"""The result of one run in sentences.

Law: if accuracy fell, the text says that it fell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedclip_edge.reporting.figures import difference, number, percent, points, whole
from fedclip_edge.reporting.run_figures import Summary, apart, is_demo, mean, pairs

_NAMED = 10  # devices in one sentence


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
    names, demo, others = names_of(summary), is_demo(summary), apart(summary)
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
