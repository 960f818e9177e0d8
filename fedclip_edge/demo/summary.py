"""Figures of a demo, for summary.json and the table.

Those of the fleet were reported by a device or counted by the coordinator, and come from its
journal. Those of FedCLIP as published and of the devices alone come from baselines.py.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedclip_edge import __version__
from fedclip_edge.coordinator.journal import open_journal
from fedclip_edge.demo.stage import Device, Stage
from fedclip_edge.errors import RunError
from fedclip_edge.learning.run_steps import exchanges, has_vote
from fedclip_edge.reporting.run_figures import Reported, Summary, device_figures
from fedclip_edge.storage import atomic
from fedclip_edge.vision.bundle import read_bundle

if TYPE_CHECKING:
    from fedclip_edge.demo.baselines import Baselines


def summarise(
    stage: Stage, broker: str, seconds: Mapping[str, float], baselines: Baselines | None
) -> Summary:
    """Collect the figures of a finished run; `seconds` are the durations of its phases.

    `rounds` and `rounds_closed` count the vote too, if `vote` is true. The accuracies "fedclip" and
    "local" are those of `baselines`; they are missing without it. Raises RunError if the journal
    holds no run or a device did not evaluate the last model.
    """
    with contextlib.closing(open_journal(stage.journal)) as journal:
        run = journal.runs.last()
        if run is None:
            raise RunError(
                f"the journal {stage.journal} holds no run; the logs in "
                f"{stage.settings.out / 'logs'} show the reason"
            )
        reports = list(journal.reports.as_json(run.id))
        closed = journal.rounds.closed(run.id)
    bundle, settings = read_bundle(stage.bundle), stage.settings
    return {
        "version": __version__,
        "world": "drawn world" if settings.data is None else f"pictures in {settings.data}",
        "encoder": {"model": bundle.manifest.model, "encoder_id": bundle.manifest.encoder_id},
        "method": run.plan.method,
        "options": dict(run.plan.options),
        "seed": run.plan.seed,
        "broker": broker,
        "rounds": exchanges(run.plan),
        "rounds_closed": closed,
        "vote": has_vote(run.plan),
        "fedclip_rounds": None if baselines is None else stage.settings.published.rounds,
        "classes": list(bundle.classes.names),
        "devices": {
            device.id: _compared(_figures(device, reports, closed), device.id, baselines)
            for device in stage.devices
        },
        "held_out": _compared(
            _figures(stage.held_out, reports, closed), stage.held_out.id, baselines
        ),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }


def write(path: Path, summary: Summary) -> None:
    """Write summary.json atomically."""
    atomic.write_file(path, (json.dumps(summary, indent=2) + "\n").encode())


def _figures(device: Device, reports: Sequence[Reported], closed: int) -> dict[str, Any]:
    own = [report for report in reports if report["device"] == device.id]
    if not own or own[-1]["round"] != closed or "zero_shot_all" not in own[-1]["accuracy"]:
        raise RunError(
            f"the device {device.id} did not evaluate the last model; its log in the demo's folder "
            "logs shows the reason"
        )
    return {**device_figures(own, closed), "domain": device.domain}


def _compared(
    figures: Mapping[str, Any], device: str, baselines: Baselines | None
) -> Mapping[str, Any]:
    """Add the accuracies of the baselines to those of a device."""
    if baselines is None:
        return figures
    by_round = list(baselines.fedclip[device])
    accuracy = {**figures["accuracy"], "fedclip": by_round[-1]}
    if device in baselines.alone:
        accuracy["local"] = baselines.alone[device]
        return {**figures, "accuracy": accuracy, "fedclip_by_round": by_round}
    alone = dict(baselines.alone_held_out)
    accuracy["local"] = statistics.fmean(alone.values())
    return {
        **figures,
        "accuracy": accuracy,
        "fedclip_by_round": by_round,
        "local_by_device": alone,
    }
