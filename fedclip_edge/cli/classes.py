"""`fedclip-edge classes publish`: new classes for a fleet that runs."""

from __future__ import annotations

from pathlib import Path

import click

from fedclip_edge.cli.group import Group


@click.group(cls=Group)
def classes() -> None:
    """Change the classes of a fleet that runs."""


@classes.command()
@click.argument("bundle", type=click.Path(file_okay=False, path_type=Path))
@click.argument("config", type=click.Path(path_type=Path), default="fleet.toml")
def publish(bundle: Path, config: Path) -> None:
    """Publish the classes of BUNDLE: the fleet's next run has them.

    BUNDLE is signed and has the encoder of the fleet's bundle; make it with `export --bundle
    --classes --sign`. The boxes fetch the class texts when the next run begins. They encode no
    picture again. The run that is under way goes on with the classes that it has.

    CONFIG is the configuration file of the coordinator that serves on this machine.
    """
    from fedclip_edge.coordinator import control
    from fedclip_edge.coordinator.process import load

    journal = load(config).journal
    told = control.ask(control.socket_path(journal), "publish", bundle=str(bundle.absolute()))
    changes = [f"{what} {', '.join(told[what])}" for what in ("added", "removed") if told[what]]
    click.echo(
        f"published {told['classes']} classes, serial {told['serial']}"
        f"{': ' if changes else ''}{'; '.join(changes)}\n"
        "The next run has them. Start it with `fedclip-edge run start` once this one is over."
    )
