"""`fedclip-edge run export`: the figures of one run, for TensorBoard, MLflow or a spreadsheet."""

from __future__ import annotations

from pathlib import Path

import click

from fedclip_edge.cli.recorded_run import opened_run, run_argument


@click.command()
@run_argument
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a CSV file, with one line for each figure.",
)
@click.option(
    "--tensorboard",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write event files into this log folder of TensorBoard, below the id of the run.",
)
@click.option(
    "--mlflow",
    metavar="URI_OR_FOLDER",
    help="Add the run to MLflow: to a tracking server, such as http://127.0.0.1:5000, or to a "
    "folder. The experiment has the name of the fleet.",
)
def export(
    run: str | None,
    config: Path,
    csv_file: Path | None,
    tensorboard: Path | None,
    mlflow: str | None,
) -> None:
    """Export the figures of a run: accuracies, norms, bytes, seconds and the vote.

    RUN is the id of a run, as `fedclip-edge runs` lists it; without it the newest run is exported.
    The command reads the journal and changes nothing there, also while `serve` runs. A second
    export of the same run replaces the first one. At least one of the three options is needed.
    """
    from fedclip_edge.config.fleet import load_fleet
    from fedclip_edge.coordinator.run_export import tracked
    from fedclip_edge.reporting import tracking

    if csv_file is None and tensorboard is None and mlflow is None:
        raise click.UsageError("say where to: --csv FILE, --tensorboard DIR or --mlflow URI")
    fleet = load_fleet(config)
    with opened_run(fleet, run) as (journal, its):
        found = tracked(journal, its, fleet.fleet)
    count = f"{len(found.figures)} figures of {found.run}"
    if csv_file is not None:
        tracking.write_csv(found, csv_file)
        click.echo(f"wrote {count} to {csv_file}")
    if tensorboard is not None:
        click.echo(f"wrote {count} to {tracking.write_tensorboard(found, tensorboard)}")
    if mlflow is not None:
        tracking.write_mlflow(found, mlflow)
        click.echo(f"added {count} to MLflow at {mlflow}")
