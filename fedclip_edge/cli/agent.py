"""`fedclip-edge agent`: the program of one device."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("config", type=click.Path(path_type=Path), default="agent.toml")
@click.option("--once", is_flag=True, help="End after one run instead of waiting for the next.")
@click.option("--json", "as_json", is_flag=True, help="Log one JSON object a line.")
def agent(config: Path, once: bool, as_json: bool) -> None:
    """Run a device: train and evaluate on its pictures.

    CONFIG (agent.toml) says which.
    """
    from fedclip_edge import log
    from fedclip_edge.agent import process as device
    from fedclip_edge.cli.progress import progress_bar
    from fedclip_edge.config import load_agent
    from fedclip_edge.processes.threads import exit_on_thread_failure

    log.use_json(as_json)
    exit_on_thread_failure()
    loaded = load_agent(config)
    with progress_bar("encoding pictures", _encoding) as progress:
        device.run(loaded, once=once, progress=progress)


def _encoding(done: int, total: int) -> None:
    from fedclip_edge import log

    log.event("encoding_pictures", done=done, total=total)
