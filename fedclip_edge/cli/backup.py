"""`fedclip-edge backup` and `restore`: a coordinator in one file, and back."""

from __future__ import annotations

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("config", type=_PATH)
@click.argument("file", type=_PATH)
def backup(config: Path, file: Path) -> None:
    """Write a coordinator's state and keys to one file.

    It holds fleet.toml, the journal, the models of finished runs, published classes, the registry
    of devices, the certificates and keys. If CONFIG uses the operator's folder that `broker init`
    made, all of that folder is in it, with the authority's key. The bundle is not in it. Only you
    can read FILE; keep it secret. An earlier backup of the same fleet under this name is replaced.

    `serve` may run meanwhile. CONFIG is the fleet's fleet.toml, and FILE a tar file.
    """
    from fedclip_edge.coordinator.backup import make_backup

    made = make_backup(config, file)
    click.echo(f"wrote {file}: {_run(made.run, made.closed, made.rounds)}, {len(made.files)} files")
    if made.site:
        click.echo("it contains the authority's key: with it, anyone can enroll devices")
    click.echo(f"not in it: the bundle {made.bundle}; keep a copy of that folder too")


@click.command()
@click.argument("file", type=_PATH)
@click.argument("folder", type=_PATH)
def restore(file: Path, folder: Path) -> None:
    """Write the files of a backup into a new folder.

    FILE is one that `backup` wrote. FOLDER must not exist, or be empty. `serve FOLDER/fleet.toml`
    then continues the run. Devices that are further than the backup follow.
    """
    from fedclip_edge.coordinator.restore import restore_backup

    made = restore_backup(file, folder)
    click.echo(
        f"restored the fleet {made.fleet} as of {made.made}: "
        f"{_run(made.run, made.closed, made.rounds)}"
    )
    if not Path(made.bundle).is_dir():
        # Published classes are in the backup; the bundle then has others.
        classes = "" if made.has_published else f", classes {made.classes_digest[:12]}"
        click.echo(
            f"first  copy the bundle to {made.bundle}, or set 'bundle' in fleet.toml (encoder "
            f"{made.encoder_id[:12]}{classes})"
        )
    registry = next((name for name in made.files if name.endswith("devices.json")), None)
    if registry is not None:
        click.echo(
            f"first  if devices were enrolled or revoked since then, replace {folder / registry} by "
            "the newest devices.json: a device that is not in it ends with code 14"
        )
    click.echo(f"then   fedclip-edge serve {folder / 'fleet.toml'}")


def _run(run: str, closed: int, rounds: int) -> str:
    return f"{run}, {closed} of {rounds} rounds closed" if run else "no run yet"
