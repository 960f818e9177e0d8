"""`fedclip-edge run show`: the figures of one run in the coordinator's journal."""

from __future__ import annotations

from pathlib import Path

import click

from fedclip_edge.cli.recorded_run import opened_run, run_argument


@click.command()
@run_argument
@click.option("--all", "every", is_flag=True, help="Show every device, not only the 20 worst.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the content of reports/RUN.json, for programs."
)
def show(run: str | None, config: Path, every: bool, as_json: bool) -> None:
    """Show the figures of a run by device: accuracy, norms, bytes and seconds.

    RUN is the id of a run, as `fedclip-edge runs` lists it; without it the newest run is shown. The
    command reads the journal and changes nothing. No coordinator has to be running.
    """
    import json
    import sys

    from fedclip_edge.cli.progress import note
    from fedclip_edge.cli.run_text import NOT_SERVED, summary_text
    from fedclip_edge.config.fleet import load_fleet
    from fedclip_edge.coordinator import control, run_report

    fleet = load_fleet(config)
    if not control.is_served(control.socket_path(fleet.journal)):
        note(NOT_SERVED)
    with opened_run(fleet, run) as (journal, shown):
        bundle = run_report.bundle_of(fleet, shown)
        found = run_report.summarise(journal, shown, fleet.fleet, bundle)
    click.echo(json.dumps(found) if as_json else summary_text(found, sys.stdout, every=every))
