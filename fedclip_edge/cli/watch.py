"""`fedclip-edge watch`: the status of the fleet, again every second."""

from __future__ import annotations

from pathlib import Path

import click

_EVERY_S = 1.0


@click.command()
@click.argument("config", type=click.Path(path_type=Path), default="fleet.toml")
@click.option("--all", "every", is_flag=True, help="List every device, not only the worst ones.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a JSON object per line each second, for programs.",
)
def watch(config: Path, every: bool, as_json: bool) -> None:
    """Show the status again every second, until Ctrl-C.

    It waits for a coordinator that is not running. Ctrl-C ends it with exit code 0.

    CONFIG is the configuration file that `serve` uses, by default fleet.toml.
    """
    import contextlib
    import json
    import sys
    import time

    from fedclip_edge.cli.progress import Screen
    from fedclip_edge.cli.status_text import status_text
    from fedclip_edge.config.fleet import load_fleet
    from fedclip_edge.coordinator import control
    from fedclip_edge.errors import LinkError

    path = control.socket_path(load_fleet(config).journal)
    with contextlib.suppress(KeyboardInterrupt), Screen(sys.stdout) as screen:
        while True:
            try:
                found = control.ask(path, "status", every=every)
                text = json.dumps(found) if as_json else status_text(found, sys.stdout)
            except LinkError as error:
                text = json.dumps({"error": str(error)}) if as_json else str(error)
            screen.show(text)
            time.sleep(_EVERY_S)
