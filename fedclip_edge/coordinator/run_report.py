"""The report of one run of a fleet: its figures from the journal, as JSON and as a page.

Law: a report holds no picture. Its figures are those that devices sent, and counts of what they
sent.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy

from fedclip_edge import __version__, log
from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator.bundle_choice import choose_bundle
from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.coordinator.journal_tables import Run
from fedclip_edge.errors import BundleError
from fedclip_edge.learning import ballot, methods
from fedclip_edge.learning.run_steps import exchanges, has_vote, steps
from fedclip_edge.reporting.run_figures import Reported, Summary, device_figures, mean, pairs
from fedclip_edge.storage import atomic
from fedclip_edge.vision.bundle import Bundle


def write_report(config: FleetConfig, journal: Journal, run: Run) -> tuple[Path, ...]:
    """Write reports/RUN.json and reports/RUN.html in the journal's folder; return their paths.

    With `reports = "off"`, or without a closed round, nothing is written. The page needs jinja2;
    without it, only the JSON file is written. A report that cannot be written is a line in the log:
    the run is not affected. Raises JournalError if the journal cannot be read.
    """
    if config.reports == "off" or not journal.rounds.closed(run.id):
        return ()
    summary = summarise(journal, run, config.fleet, bundle_of(config, run))
    data = config.journal.parent / "reports" / f"{run.id}.json"
    page = data.with_suffix(".html")
    written = []
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_file(data, (json.dumps(summary, indent=2) + "\n").encode())
        written.append(data)
        if importlib.util.find_spec("jinja2") is not None:
            from fedclip_edge.reporting.run_page import write_run_page

            write_run_page(page, summary)
            written.append(page)
    except OSError as error:
        reason = f"{error.filename or data.parent}: {error.strerror or error}"
        log.event("report_not_written", run=run.id, reason=reason)
        return tuple(written)
    is_whole = page in written
    log.event(
        "report_written",
        run=run.id,
        path=page if is_whole else data,
        hint=None if is_whole else "pip install 'fedclip-edge[serve]' for the page",
    )
    return tuple(written)


def bundle_of(config: FleetConfig, run: Run) -> Bundle | None:
    """Return the run's bundle, which names classes and encoder; None if it cannot be used."""
    try:
        return choose_bundle(config, run)
    except BundleError:
        return None


def summarise(journal: Journal, run: Run, fleet: str, bundle: Bundle | None) -> Summary:
    """Collect the figures of a run, in the form that `run_figures.py` describes.

    The names of the classes are those of the bundle, if the run has its classes. Raises
    JournalError if the journal cannot be read.
    """
    closed, plan = journal.rounds.closed(run.id), run.plan
    kept: dict[str, list[tuple[int, int, float]]] = {}
    for number, device, size_bytes, norm in journal.contributions.all(run.id):
        kept.setdefault(device, []).append((number, size_bytes, norm))
    reports: dict[str, list[Reported]] = {}
    for report in journal.reports.as_json(run.id):
        reports.setdefault(report["device"], []).append(report)
    before = _reported_before(journal, run)
    votes = {n for n, step in enumerate(steps(plan), 1) if step.kind == "vote"}
    entries = {
        device: {
            **device_figures(reports.get(device, []), closed, before.get(device)),
            **_contributed(kept.get(device, []), closed, votes),
        }
        for device in sorted({*journal.devices.keys(run.id), *reports, *kept})
    }
    trains = {d for d in entries if d in kept or entries[d]["pictures"].get("train") != 0}
    fits = bundle is not None and bundle.classes.digest == run.classes_digest
    same = bundle is not None and bundle.manifest.encoder_id == run.encoder_id
    return {
        "version": __version__,
        "fleet": fleet,
        "run": run.id,
        **_course(journal, run),
        "encoder": {
            "model": bundle.manifest.model if bundle is not None and same else None,
            "encoder_id": run.encoder_id,
        },
        "method": plan.method,
        "options": dict(plan.options),
        "seed": plan.seed,
        "rounds": exchanges(plan),
        "rounds_closed": closed,
        "classes": list(bundle.classes.names) if bundle is not None and fits else [],
        "devices": {device: entry for device, entry in entries.items() if device in trains},
        "evaluators": {device: entry for device, entry in entries.items() if device not in trains},
        "vote": has_vote(plan),
        "decision": vote_of(journal, run),
    }


def brief(journal: Journal, run: Run) -> dict[str, Any]:
    """Collect the few figures of a run that a list of runs shows.

    Accuracies are means over the devices that trained and reported on the last model. Raises
    JournalError if the journal cannot be read.
    """
    closed = journal.rounds.closed(run.id)
    sent = journal.contributions.sent(run.id)
    last = journal.reports.newest(run.id)
    entries = {d: one for d, one in last.items() if d in sent and one["round"] == closed}
    both = pairs(entries, "zero_shot", "federated")
    own = pairs(entries, "personal", "personal")
    means = {"zero_shot": mean([a for a, _ in both]), "federated": mean([b for _, b in both])}
    if len(own) == len(both):
        means["personal"] = mean([a for a, _ in own])
    return {
        "run": run.id,
        **_course(journal, run),
        "method": run.plan.method,
        "rounds": exchanges(run.plan),
        "rounds_closed": closed,
        "devices": len(sent),
        "reported": len(both),
        "accuracy": {kind: value for kind, value in means.items() if value is not None},
        "updates_bytes": sum(its.size_bytes for its in sent.values()),
    }


def _course(journal: Journal, run: Run) -> dict[str, Any]:
    """State, beginning (Unix time, in seconds) and length of a run, and the cause of its start."""
    course = journal.runs.course(run.id)
    end = course.ended_at
    return {
        "state": "paused" if course.paused else course.state,
        "started_at": course.started_at,
        "seconds": None if end is None else round(end - course.started_at, 1),
        "started_by": course.started_by,
        "started_from": course.started_from,
    }


def _reported_before(journal: Journal, run: Run) -> Mapping[str, Reported]:
    """The last report of each device in the run before this one."""
    earlier = []
    for one in journal.runs.all():
        if one.id == run.id:
            break
        earlier.append(one)
    if not earlier:
        return {}
    return journal.reports.newest(earlier[-1].id)


def _contributed(
    kept: list[tuple[int, int, float]], closed: int, votes: set[int]
) -> dict[str, Any]:
    """Figures of a device's contributions to closed exchanges: round, bytes and norm of each."""
    its = [one for one in kept if one[0] <= closed]
    norms = [norm for number, _, norm in its if number not in votes]
    return {
        "contributions": len(its),
        "norm": statistics.median(norms) if norms else None,
        "norm_largest": max(norms, default=None),
        "norm_by_round": {str(number): norm for number, _, norm in its if number not in votes},
        "updates_bytes": sum(size_bytes for _, size_bytes, _ in its),
    }


def vote_of(journal: Journal, run: Run) -> dict[str, Any] | None:
    """Return the decision of the run's last vote; None if it had none yet."""
    state = safetensors.numpy.load(journal.rounds.newest_model(run.id).server_state)
    choice = ballot.choice_in(state)
    if choice is None:
        return None
    shares = methods.get(run.plan.method).shares
    chosen = {label: its[choice.candidate] for label, its in shares.items()}
    return {
        "candidate": choice.candidate,
        "shares": {label: share for label, share in chosen.items() if share},
        "temperature": choice.temperature,
        "pictures": choice.pictures,
        "loss": choice.loss,
        "zero_shot_loss": choice.zero_shot_loss,
        "correct": choice.correct,
        "zero_shot_correct": choice.zero_shot_correct,
        "said": _said(choice, chosen),
    }


def _said(choice: ballot.Choice, chosen: Mapping[str, float]) -> str:
    """Describe the decision in one or two sentences."""
    if choice.loss is None:
        return (
            "There was no comparison: too few devices or too few validation pictures "
            f"({choice.pictures}) voted, so the run ended with the default candidate."
        )
    mixed = ", ".join(f"{share:g} x {label}" for label, share in chosen.items() if share)
    what = "zero-shot CLIP" if choice.candidate == 0 else f"candidate {choice.candidate}"
    said = f"{choice.pictures} validation pictures chose {what}"
    said += f" ({mixed})" * (choice.candidate != 0)
    if choice.candidate == 0:
        return f"{said}: no trained model was better."
    return f"{said}. Its temperature is {choice.temperature:g}."
