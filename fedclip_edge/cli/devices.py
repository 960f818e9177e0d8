"""`fedclip-edge devices`: every device of the fleet, or one of them in full."""

from __future__ import annotations

from pathlib import Path

import click

_SHOWN = 20


@click.command()
@click.argument("config", type=click.Path(path_type=Path), default="fleet.toml")
@click.option("--all", "every", is_flag=True, help=f"Show more than the {_SHOWN} worst devices.")
@click.option("--device", metavar="ID", help="Show this device in full, with its classes.")
@click.option(
    "--classes",
    "by_class",
    is_flag=True,
    help="Show the pictures and the accuracy of each class over all devices.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, for programs.")
def devices(config: Path, every: bool, device: str | None, by_class: bool, as_json: bool) -> None:
    """Show the devices of the coordinator on this machine, the worst first.

    A device is refused, muted (it sends too many messages), left out (it missed two deadlines),
    offline, paused (it is too hot, or runs on its battery), not seen, late, encoding, online or
    revoked. Up and down are bytes since its agent started; encode, train and wait are seconds.

    CONFIG is the configuration file that `serve` uses, by default fleet.toml.
    """
    import json
    import sys

    from fedclip_edge.cli import device_tables
    from fedclip_edge.config.fleet import load_fleet
    from fedclip_edge.config.reading import unknown
    from fedclip_edge.coordinator import control

    if device is not None and by_class:
        raise click.UsageError("--device and --classes exclude each other; choose one")
    wants_classes = as_json or by_class or device is not None
    path = control.socket_path(load_fleet(config).journal)
    found = control.ask(path, "devices", by_class=wants_classes)
    rows = {row["id"]: row for row in found["devices"]}
    if device is not None and device not in rows:
        raise unknown("device", device, rows)
    if as_json:
        click.echo(json.dumps(found if device is None else rows[device]))
    elif device is not None:
        click.echo(device_tables.device_text(found, rows[device], sys.stdout))
    elif by_class:
        table = device_tables.class_table(found["devices"], found["classes"], sys.stdout)
        click.echo(table or "no device that is online tells its pictures by class")
    elif not rows:
        click.echo("no device has joined this run yet")
    else:
        shown = found["devices"] if every else found["devices"][:_SHOWN]
        click.echo(device_tables.device_table(shown, sys.stdout))
        if len(rows) > len(shown):
            click.echo(f"and {len(rows) - len(shown)} more; --all shows every device")
