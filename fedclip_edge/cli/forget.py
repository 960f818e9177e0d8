"""`fedclip-edge forget`: removal of a device's data from the journal and the models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fedclip_edge.config.fleet import FleetConfig


@click.command()
@click.argument("config", nargs=-1, type=click.Path(path_type=Path), metavar="[CONFIG]")
@click.argument("id")
@click.option(
    "--without-vote",
    is_flag=True,
    help="Do not let the devices vote again. The model is then the default candidate.",
)
@click.option(
    "--delete-models",
    is_flag=True,
    help="Delete the models that contain the device and cannot be computed again, in the journal "
    "and in its folder models/.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as a JSON object.")
def forget(
    config: tuple[Path, ...], id: str, without_vote: bool, delete_models: bool, as_json: bool
) -> None:
    """Remove a device's contributions, answers and reports from the journal.

    A model of a closed-form method (gda, ridge, tofa) is computed again without the device. If the
    ballot changes, the devices vote again when `serve` continues the run. A model that was trained
    in rounds cannot be computed again; the command says what is possible.

    This does not revoke the device: use `fedclip-edge revoke` to keep it out of later runs.

    CONFIG is the fleet's configuration file, by default fleet.toml.
    """
    import json

    from fedclip_edge.coordinator import process
    from fedclip_edge.errors import JournalError

    if len(config) > 1:
        raise click.UsageError("Expected one configuration file and one device.")
    loaded = process.load(config[0] if config else Path("fleet.toml"))
    done = _forget(loaded, id, without_vote=without_vote, delete_models=delete_models)
    if as_json:
        click.echo(json.dumps(done))
    else:
        for line in _lines(done, loaded):
            click.echo(line)
    if done["failures"]:
        raise JournalError(
            f"{id} is removed from the journal, but not everything is done: "
            f"{'; '.join(done['failures'])}; remove the cause and run this command again"
        )


def _forget(config: FleetConfig, device: str, **choices: bool) -> dict[str, Any]:
    """Let the coordinator that serves from the journal do it; without one, do it here."""
    from fedclip_edge import log
    from fedclip_edge.coordinator import control, forgetting

    try:
        path = control.socket_path(config.journal)
        done = control.ask(path, "forget", device=device, **choices)
    except control.NotServingError:
        log.mute()  # the steps of a computation that nobody follows
        offline = forgetting.forget_offline(config, device, **choices)
        return {**offline.to_json(), "serving": False}
    failure = forgetting.erase(config.journal, lambda: int(control.ask(path, "erase")["left"]))
    return {**done, "failures": [*done["failures"], *filter(None, [failure])], "serving": True}


def _lines(done: dict[str, Any], config: FleetConfig) -> Iterator[str]:
    device = done["device"]
    yield (
        f"forgot {device}: {_count(done['contributions'], 'contribution')} and "
        f"{_count(done['reports'], 'report')} deleted"
    )
    for one in done["solved"]:
        yield f"{one['run']}: {_solved(one, serving=done['serving'])}"
    for run in done["emptied"]:
        yield f"{run}: its models are deleted"
    for one in done["remaining"]:
        reason = f", because {one['reason']}" if one["reason"] else ""
        yield (
            f"{one['run']}: its models still contain {device}{reason}; delete them with "
            "--delete-models"
        )
    for path in done["files"]:
        yield f"{path}: {'written again' if Path(path).exists() else 'deleted'}"
    for path in done["remaining_files"]:
        yield f"{path}: still contains {device}"
    if done["serving"]:
        yield (
            "the journal is erased; unused parts of its pages may hold copies of rows that SQLite "
            "moved, until `serve` is started again"
        )
    yield (
        "not covered: backups, logs, exported classifiers, and the models that devices have "
        "downloaded"
    )
    if config.registry is not None:
        yield f"if {device} may not take part again: fedclip-edge revoke {device}"


def _solved(one: dict[str, Any], *, serving: bool) -> str:
    later = "" if serving else " when `fedclip-edge serve` continues it"
    if not one["devices"]:
        after = f"it begins again{later}" if one["is_open"] else "its models are deleted"
        return f"no contribution of another device is left; {after}"
    said = f"computed again from the contributions of {_count(one['devices'], 'device')}"
    return f"{said}; the devices vote again{later}" if one["is_open"] else said


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
