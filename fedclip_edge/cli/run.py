"""`fedclip-edge run`: control of the coordinator's runs, through its socket."""

from __future__ import annotations

from pathlib import Path

import click

from fedclip_edge.cli.group import Group

_CONFIG = click.argument("config", type=click.Path(path_type=Path), default="fleet.toml")


@click.group(cls=Group)
def run() -> None:
    """Control the runs of a coordinator that serves on this machine."""


@run.command()
@_CONFIG
def start(config: Path) -> None:
    """Start a new run."""
    from fedclip_edge.config import load_fleet
    from fedclip_edge.coordinator import control

    started = control.ask(control.socket_path(load_fleet(config).journal), "start")
    click.echo(f"started {started['run']}")
