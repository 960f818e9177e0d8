"""Figures of one run, by device, in the form that the run's page and table show.

Every figure was reported by a device or counted by the coordinator; nothing is computed from
pictures or features here.

A summary is a JSON object with the entries `devices` (the devices that train, by id), `rounds` and
`rounds_closed` (which count the vote too, if `vote` is true), `method` and others. An entry of a
device is what `device_figures` returns. Devices that do not train are in `evaluators`, or in
`held_out` if there is one with a domain of its own.

A run of the demo also has the figures of what the fleet is compared with (demo/summary.py), and a
run of a fleet has the decision of its vote and the devices' contributions
(coordinator/run_report.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedclip_edge.reporting.figures import number

Summary = Mapping[str, Any]
Reported = Mapping[str, Any]  # a report as a JSON object (protocol/report.py)
# Heading of each kind of accuracy, in the order of the columns.
KINDS = {
    "zero_shot": "zero-shot",
    "fedclip": "FedCLIP",
    "local": "local",
    "federated": "federated",
    "personal": "personal",
}
UNKNOWN = "unknown"  # share of test pictures that the shared model calls none of the classes
_ALWAYS = ("zero_shot", "federated")
_NONE: Reported = {}


def device_figures(
    reports: Sequence[Reported], closed: int, before: Reported | None = None
) -> dict[str, Any]:
    """Return the figures of a device from its reports on one run, in the order of rounds.

    `closed` is the number of closed rounds. Accuracies are those of the last model; without a
    report on it there are none. Bytes, seconds and encoded pictures are counted since the agent
    started, so those of this run are their increase; `before` is the device's last report on an
    earlier run. A count that went back belongs to an agent that was started again.
    """
    last = reports[-1] if reports else _NONE
    by_round = {report["round"]: report["accuracy"].get("federated") for report in reports}
    is_measured = last.get("round") == closed

    def spent(name: str) -> Any:
        return _increase([report[name] for report in reports], (before or _NONE).get(name))

    return {
        "domain": last.get("domain", ""),
        "pictures": {
            side: last[f"{side}_pictures"]
            for side in ("train", "test")
            if f"{side}_pictures" in last
        },
        "encoded": spent("encoded"),
        "skipped": last.get("skipped"),
        "accuracy": dict(last["accuracy"]) if is_measured else {},
        "per_class": {name: list(its) for name, its in last["per_class"].items()}
        if is_measured
        else {},
        "accuracy_by_round": [by_round.get(number) for number in range(closed + 1)],
        "bytes_up_per_round": _per_round(spent("bytes_up"), closed),
        "bytes_down_per_round": _per_round(spent("bytes_down"), closed),
        "seconds": {
            name: None if (seconds := spent(f"{name}_s")) is None else round(seconds, 2)
            for name in ("encode", "train", "wait")
        },
    }


def apart(summary: Summary) -> dict[str, Any]:
    """Return the entries of the devices that do not train, by id."""
    held_out = summary.get("held_out")
    return dict(summary.get("evaluators") or ({"held-out": held_out} if held_out else {}))


def kinds(summary: Summary) -> list[str]:
    """List the kinds of accuracy that a device of the run has, and those of every run."""
    entries = [*summary["devices"].values(), *apart(summary).values()]
    return [k for k in KINDS if k in _ALWAYS or any(k in its["accuracy"] for its in entries)]


def has_unknown(summary: Summary) -> bool:
    """Return whether the last model has a threshold below which a picture is unknown."""
    return any(UNKNOWN in its["accuracy"] for its in summary["devices"].values())


def worst_first(devices: Mapping[str, Any]) -> dict[str, Any]:
    """Sort devices by the accuracy of the shared model; those without one come first."""

    def accuracy(item: tuple[str, Any]) -> tuple[float, str]:
        known = number(item[1]["accuracy"].get("federated"))
        return (-1.0 if known is None else known), item[0]

    return dict(sorted(devices.items(), key=accuracy))


def is_demo(summary: Summary) -> bool:
    """Return whether the run was one of the demo, in which each device is a style of pictures."""
    return "world" in summary


def pairs(entries: Mapping[str, Any], one: str, other: str) -> list[tuple[float, float]]:
    """List (one, other) accuracies of the devices that have both, so that means are comparable."""
    accuracies = [entry["accuracy"] for entry in entries.values()]
    both = [(number(accuracy.get(one)), number(accuracy.get(other))) for accuracy in accuracies]
    return [(a, b) for a, b in both if a is not None and b is not None]


def column_mean(summary: Summary, kind: str) -> float | None:
    """Return the mean of one kind of accuracy over all devices; None if a device has none."""
    found = pairs(summary["devices"], kind, kind)
    return mean([a for a, _ in found]) if len(found) == len(summary["devices"]) else None


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; None of no values."""
    return sum(values) / len(values) if values else None


def _increase(values: Sequence[Any], before: Any) -> Any:
    """Return what was added to a count during the run; None if that is not known."""
    if not values or None in values:
        return None
    total, last = 0, before or 0
    for value in values:
        total += value - last if value >= last else value
        last = value
    return total


def _per_round(total_bytes: int | None, rounds: int) -> int | None:
    return None if total_bytes is None else round(total_bytes / max(1, rounds))
