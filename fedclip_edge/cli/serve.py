"""`fedclip-edge serve`: the coordinator of one fleet."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("config", type=click.Path(path_type=Path), default="fleet.toml")
@click.option("--take-over", is_flag=True, help="Start although another coordinator seems online.")
@click.option("--json", "as_json", is_flag=True, help="Log one JSON object a line.")
def serve(config: Path, take_over: bool, as_json: bool) -> None:
    """Coordinate the rounds of a run, and end with it.

    CONFIG (fleet.toml) says which.
    """
    from fedclip_edge import log
    from fedclip_edge.coordinator import process
    from fedclip_edge.processes.threads import exit_on_thread_failure

    log.use_json(as_json)
    exit_on_thread_failure()
    process.serve(process.load(config), take_over=take_over, as_json=as_json)
