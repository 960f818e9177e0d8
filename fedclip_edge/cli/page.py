"""`fedclip-edge page`: the fleet's web page."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("config", type=click.Path(path_type=Path), default="fleet.toml")
@click.option(
    "--json", "as_json", is_flag=True, help="Write each log line as a JSON object, for programs."
)
def page(config: Path, as_json: bool) -> None:
    """Serve the fleet's web page, at the address under [page].

    `serve` starts it by itself if CONFIG has the table [page]. It asks the coordinator on this
    machine and reads its journal, and needs the rights of the user that runs `serve`. Past runs are
    shown also while no coordinator runs. The file with the token that opens the page is in the log.

    CONFIG is the configuration file that `serve` uses, by default fleet.toml.
    """
    from fedclip_edge import log
    from fedclip_edge.config.fleet import load_fleet
    from fedclip_edge.coordinator.page import process

    log.use_json(as_json)
    process.serve(load_fleet(config))
