"""`fedclip-edge runs`: the runs in the coordinator's journal."""

from __future__ import annotations

from pathlib import Path

import click

_SHOWN = 20


@click.command()
@click.argument("config", type=click.Path(path_type=Path), default="fleet.toml")
@click.option("--all", "every", is_flag=True, help=f"Show more than the {_SHOWN} newest runs.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, for programs.")
def runs(config: Path, every: bool, as_json: bool) -> None:
    """Show the runs in the journal, the newest first.

    It reads the journal and changes nothing. No coordinator has to be running. The accuracies are
    means over the devices that reported on the run's last model.

    CONFIG is the configuration file that `serve` uses, by default fleet.toml.
    """
    import contextlib
    import json
    import sys

    from fedclip_edge.cli.progress import note
    from fedclip_edge.cli.run_text import NOT_SERVED, runs_table
    from fedclip_edge.config.fleet import load_fleet
    from fedclip_edge.coordinator import control, run_report
    from fedclip_edge.coordinator.journal import open_journal_to_read

    path = load_fleet(config).journal
    if not control.is_served(control.socket_path(path)):
        note(NOT_SERVED)
    with contextlib.closing(open_journal_to_read(path)) as journal:
        found = journal.runs.all()[::-1]
        shown = found if every or as_json else found[:_SHOWN]
        rows = [run_report.brief(journal, one) for one in shown]
    if as_json:
        click.echo(json.dumps({"runs": rows}))
        return
    click.echo(runs_table(rows, sys.stdout) if rows else f"the journal {path} has no run yet")
    if len(found) > len(rows):
        click.echo(f"and {len(found) - len(rows)} more; --all shows every run")
