"""`fedclip-edge status`: the run and the fleet now."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("config", type=click.Path(path_type=Path), default="fleet.toml")
@click.option("--all", "every", is_flag=True, help="List every device, not only the worst ones.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, for programs.")
def status(config: Path, every: bool, as_json: bool) -> None:
    """Show what the coordinator on this machine does, and which devices need attention.

    The list has up to ten devices that are refused, left out, offline, paused, not seen or late,
    the worst first. Without a running coordinator the command ends with exit code 20; `fedclip-edge
    runs` then still shows the runs in the journal.

    CONFIG is the configuration file that `serve` uses, by default fleet.toml.
    """
    import json
    import sys

    from fedclip_edge.cli.status_text import status_text
    from fedclip_edge.config.fleet import load_fleet
    from fedclip_edge.coordinator import control

    found = control.ask(control.socket_path(load_fleet(config).journal), "status", every=every)
    click.echo(json.dumps(found) if as_json else status_text(found, sys.stdout))
