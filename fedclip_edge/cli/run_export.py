"""`fedclip-edge run export`: the figures of one run, for TensorBoard, MLflow or a spreadsheet."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", required=False)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default="fleet.toml",
    show_default=True,
    help="The configuration file that `serve` uses.",
)
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
    import contextlib

    from fedclip_edge.config.fleet import load_fleet
    from fedclip_edge.coordinator.journal import open_journal_to_read
    from fedclip_edge.coordinator.model_lookup import find_run
    from fedclip_edge.coordinator.run_export import tracked
    from fedclip_edge.reporting import tracking

    if csv_file is None and tensorboard is None and mlflow is None:
        raise click.UsageError("say where to: --csv FILE, --tensorboard DIR or --mlflow URI")
    fleet = load_fleet(config)
    with contextlib.closing(open_journal_to_read(fleet.journal)) as journal:
        found = tracked(journal, find_run(journal, run), fleet.fleet)
    count = f"{len(found.figures)} figures of {found.run}"
    if csv_file is not None:
        tracking.write_csv(found, csv_file)
        click.echo(f"wrote {count} to {csv_file}")
    if tensorboard is not None:
        click.echo(f"wrote {count} to {tracking.write_tensorboard(found, tensorboard)}")
    if mlflow is not None:
        tracking.write_mlflow(found, mlflow)
        click.echo(f"added {count} to MLflow at {mlflow}")
