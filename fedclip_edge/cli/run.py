"""`fedclip-edge run`: control of the coordinator's runs, through its socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedclip_edge.cli.group import Group
from fedclip_edge.cli.run_export import export
from fedclip_edge.cli.run_show import show

_CONFIG = click.argument("config", type=click.Path(path_type=Path), default="fleet.toml")


@click.group(cls=Group)
def run() -> None:
    """Control the runs of the coordinator that serves on this machine.

    CONFIG is the fleet's configuration file, by default fleet.toml. The commands need the rights of
    the user that runs `serve`. The journal records who gave which command, and when.
    """


@run.command()
@_CONFIG
@click.option(
    "--from",
    "start",
    default="zero-shot",
    show_default=True,
    metavar="MODEL",
    help="The model that the run starts from: zero-shot; last, for that of the newest run that is "
    "done; or the id of a run. It needs the same method and encoder. The classes may have changed.",
)
def start(config: Path, start: str) -> None:
    """Start a new run, with the settings that are in CONFIG now.

    No other run may be under way.
    """
    started = _ask(config, "start", start=start)
    click.echo(f"started {started['run']} from {started['started_from']}")


@run.command()
@_CONFIG
def pause(config: Path) -> None:
    """Open no further round until `run resume`.

    A round that is open goes on to its end.
    """
    found = _ask(config, "pause")
    rest = "; the open round goes on to its end" if found["phase"] == "open" else ""
    click.echo(f"paused {_described(found)}{rest}")


@run.command()
@_CONFIG
def resume(config: Path) -> None:
    """Let a paused run go on."""
    click.echo(f"resumed {_described(_ask(config, 'resume'))}")


@run.command()
@_CONFIG
@click.option("--now", is_flag=True, help="End the run with the model of its last closed round.")
def close(config: Path, now: bool) -> None:
    """Close the open round with the contributions that are in.

    The quorum and the deadline do not matter then.
    """
    found = _ask(config, "close", now=now)
    click.echo(f"{'ending' if now else 'closed a round of'} {_described(found)}")


@run.command()
@_CONFIG
def abandon(config: Path) -> None:
    """End the run without a model file.

    Its newest model stays in the journal, for `predict --model RUN`.
    """
    click.echo(f"abandoned {_described(_ask(config, 'abandon'))}")


@run.command()
@_CONFIG
@click.option(
    "--rounds",
    type=click.IntRange(1, 1_000_000),
    required=True,
    metavar="N",
    help="The number of rounds of the whole run, as `rounds` under [plan].",
)
def extend(config: Path, rounds: int) -> None:
    """Change the number of rounds of the run under way.

    That is possible until the last round is closed, and before the vote.
    """
    click.echo(f"extended {_described(_ask(config, 'extend', rounds=rounds))}")


def _ask(config: Path, command: str, **arguments: Any) -> dict[str, Any]:
    from fedclip_edge.config.fleet import load_fleet
    from fedclip_edge.coordinator import control

    return control.ask(control.socket_path(load_fleet(config).journal), command, **arguments)


def _described(found: dict[str, Any]) -> str:
    return f"{found['run']} ({found['closed']} of {found['rounds']} rounds closed)"


run.add_command(show)
run.add_command(export)
