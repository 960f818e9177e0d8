"""Figures of a demo, from the coordinator's journal, for summary.json and the table."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedclip_edge import __version__
from fedclip_edge.coordinator.journal import open_journal
from fedclip_edge.demo.stage import Device, Stage
from fedclip_edge.errors import RunError
from fedclip_edge.learning.schedule import exchanges
from fedclip_edge.reporting.run_figures import Reported, Summary, device_figures
from fedclip_edge.storage import atomic
from fedclip_edge.vision.bundle import read_bundle


def summarise(stage: Stage, broker: str, seconds: Mapping[str, float]) -> Summary:
    """Collect the figures of a finished run; `seconds` are the durations of its phases.

    Raises RunError if the journal holds no run or a device did not evaluate the last model.
    """
    with contextlib.closing(open_journal(stage.journal)) as journal:
        run = journal.last_run()
        if run is None:
            raise RunError(
                f"the journal {stage.journal} holds no run; the logs in "
                f"{stage.settings.out / 'logs'} show the reason"
            )
        reports = list(journal.reported(run.id))
        closed = journal.rounds_closed(run.id)
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
        "classes": list(bundle.classes.names),
        "devices": {device.id: _figures(device, reports, closed) for device in stage.devices},
        "held_out": _figures(stage.held_out, reports, closed),
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
