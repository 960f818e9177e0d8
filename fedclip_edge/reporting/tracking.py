"""Figures of a run for other programs: a CSV file, TensorBoard's event files, and MLflow.

Laws:
- The same run gives the same CSV and the same event files. Writing them again replaces them.
- MLflow sends nothing to its makers, unless the user's environment asks for that.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedclip_edge.errors import ConfigError
from fedclip_edge.storage import atomic

FLEET = "fleet"  # the name beside those of the devices, for figures of all of them
_EVENT_FILE = "events.out.tfevents.fedclip-edge"  # TensorBoard reads names with "tfevents"
_MLFLOW_RUN = "fedclip_edge.run"  # tag of all MLflow runs that belong to one run of the fleet
_AT_ONCE = 1000  # MLflow takes no more metrics in one request


@dataclass(frozen=True)
class Figure:
    """One number about a run. Its name may have a group before a slash: `accuracy/zero_shot`."""

    round: int  # closed rounds of the model, or the number of the round
    device: str | None  # None for a figure of the whole fleet
    name: str
    value: float


@dataclass(frozen=True)
class Tracked:
    """A run with all its figures. `settings` are those of its plan, by name."""

    fleet: str
    run: str
    started_at: float  # Unix time, in seconds
    settings: Mapping[str, Any]
    figures: Sequence[Figure]

    def by_device(self) -> dict[str | None, list[Figure]]:
        """The figures of each device; those of the fleet come first, with the key None."""
        found: dict[str | None, list[Figure]] = {None: []}
        for figure in self.figures:
            found.setdefault(figure.device, []).append(figure)
        return found


def write_csv(tracked: Tracked, path: Path) -> None:
    """Write one line for each figure; raises OSError if the file cannot be written."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("run", "round", "device", "figure", "value"))
    for one in tracked.figures:
        writer.writerow((tracked.run, one.round, one.device or "", one.name, repr(one.value)))
    atomic.write_file(path, text.getvalue().encode())


def write_tensorboard(tracked: Tracked, folder: Path) -> Path:
    """Write event files into folder/RUN: one folder for the fleet, and one for each device.

    Returns folder/RUN. Raises OSError if they cannot be written; ModuleNotFoundError without
    tensorboard.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    for device, figures in tracked.by_device().items():
        data = io.BytesIO()
        records = RecordWriter(data)
        at = tracked.started_at
        records.write(Event(wall_time=at, file_version="brain.Event:2").SerializeToString())
        for one in figures:
            summary = Summary(value=[Summary.Value(tag=one.name, simple_value=one.value)])
            event = Event(wall_time=at, step=one.round, summary=summary)
            records.write(event.SerializeToString())
        atomic.write_file(folder / tracked.run / _place(device) / _EVENT_FILE, data.getvalue())
    return folder / tracked.run


def write_mlflow(tracked: Tracked, to: str) -> None:
    """Add the run to MLflow, in an experiment with the name of the fleet.

    `to` is the URI of a tracking server or a database, or a folder. Each device is a run below
    that of the fleet. An earlier export of the same run is deleted. Raises ConfigError if MLflow
    does not take it; ModuleNotFoundError without mlflow.
    """
    for name, value in _MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = to if "://" in to else Path(to).absolute().as_uri()
    try:
        _log_all(MlflowClient(tracking_uri=uri), tracked)
    except (MlflowException, OSError) as error:
        raise ConfigError(
            f"MLflow at {to} did not take the run: {' '.join(str(error).split())}; check the "
            "address, and that its server runs"
        ) from error


# Read when mlflow is imported. By default it reports its use to its makers, and tries to reach a
# server for minutes. A folder as the store is refused by newer versions unless it is asked for.
_MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}


def _log_all(client: Any, tracked: Tracked) -> None:
    from mlflow.entities import Metric, Param

    known = client.get_experiment_by_name(tracked.fleet)
    experiment = client.create_experiment(tracked.fleet) if known is None else known.experiment_id
    while old := client.search_runs([experiment], f"tags.`{_MLFLOW_RUN}` = '{tracked.run}'"):
        for run in old:
            client.delete_run(run.info.run_id)
    start_ms = int(tracked.started_at * 1000)
    parent = ""
    for device, figures in tracked.by_device().items():
        tags = {_MLFLOW_RUN: tracked.run}
        if parent:
            tags["mlflow.parentRunId"] = parent
        made = client.create_run(
            experiment,
            start_time=start_ms,
            tags=tags,
            run_name=tracked.run if device is None else device,
        )
        its = made.info.run_id
        parent = parent or its
        params = [Param(name, str(value)) for name, value in tracked.settings.items()]
        client.log_batch(its, params=params if device is None else [])
        metrics = [Metric(one.name, one.value, start_ms, one.round) for one in figures]
        for begin in range(0, len(metrics), _AT_ONCE):
            client.log_batch(its, metrics=metrics[begin : begin + _AT_ONCE])
        client.set_terminated(its)


def _place(device: str | None) -> str:
    return FLEET if device is None else f"devices/{device}"
