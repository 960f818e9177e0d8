"""All figures of a run in the journal, for other programs (reporting/tracking.py).

The journal does not keep how long a round took; the log and the metrics have that. The seconds and
the bytes on the socket are those of the devices' reports: since the start of each agent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.coordinator.journal_tables import Run
from fedclip_edge.coordinator.run_report import vote_of
from fedclip_edge.learning.run_steps import steps
from fedclip_edge.reporting.tracking import Figure, Tracked

# Of a report (protocol/report.py), under their names here.
_OF_A_REPORT: Mapping[str, str] = {
    "seconds/encode": "encode_s",
    "seconds/train": "train_s",
    "seconds/wait": "wait_s",
    "bytes/up": "bytes_up",
    "bytes/down": "bytes_down",
    "pictures/train": "train_pictures",
    "pictures/test": "test_pictures",
}


def tracked(journal: Journal, run: Run, fleet: str) -> Tracked:
    """Collect every figure of a run, in the order of rounds.

    Raises JournalError if the journal cannot be read.
    """
    figures = [
        *_of_contributions(journal, run),
        *_of_reports(journal, run),
        *_of_vote(journal, run),
    ]
    figures.sort(key=lambda one: (one.round, one.device or "", one.name))
    return Tracked(
        fleet=fleet,
        run=run.id,
        started_at=journal.runs.course(run.id).started_at,
        settings=_flat(run.plan.to_json()),
        figures=[one for one in figures if math.isfinite(one.value)],
    )


def _of_contributions(journal: Journal, run: Run) -> Iterator[Figure]:
    sizes: dict[int, list[int]] = {}
    votes = {number for number, step in enumerate(steps(run.plan), 1) if step.kind == "vote"}
    for number, device, size_bytes, norm in journal.contributions.all(run.id):
        if number not in votes:  # an answer to a vote changes no model
            yield Figure(number, device, "update/norm", norm)
        yield Figure(number, device, "update/bytes", size_bytes)
        sizes.setdefault(number, []).append(size_bytes)
    for number, its in sizes.items():
        yield Figure(number, None, "update/contributions", len(its))
        yield Figure(number, None, "update/bytes", sum(its))


def _of_reports(journal: Journal, run: Run) -> Iterator[Figure]:
    """The figures of each report, and the means of all devices that reported on a model."""
    shares: dict[tuple[int, str], list[float]] = {}
    reports: Counter[int] = Counter()
    for report in journal.reports.as_json(run.id):
        number, device = report["round"], report["device"]
        reports[number] += 1
        for name, share in report["accuracy"].items():
            yield Figure(number, device, f"accuracy/{name}", share)
            shares.setdefault((number, name), []).append(share)
        for name, key in _OF_A_REPORT.items():
            if report[key] is not None:
                yield Figure(number, device, name, report[key])
    for (number, name), its in shares.items():
        yield Figure(number, None, f"accuracy/{name}", fmean(its))
    for number, count in reports.items():
        yield Figure(number, None, "reports", count)


def _of_vote(journal: Journal, run: Run) -> Iterator[Figure]:
    """The figures of the run's vote, at the number of the exchange that it was."""
    vote = vote_of(journal, run)
    if vote is None:
        return
    closed = journal.rounds.closed(run.id)
    for name in ("candidate", "temperature", "pictures", "loss", "zero_shot_loss"):
        if vote[name] is not None:
            yield Figure(closed, None, f"vote/{name}", vote[name])
    for name, key in (("accuracy", "correct"), ("zero_shot_accuracy", "zero_shot_correct")):
        if vote[key] is not None and vote["pictures"]:
            yield Figure(closed, None, f"vote/{name}", vote[key] / vote["pictures"])


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a table and of the tables in it, by name: `options.lr`."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
