"""`fedclip-edge doctor`: checks of one device, each with the next step."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedclip_edge.agent.doctor.finding import Finding

_MARKS = {"ok": "ok", "todo": "TO DO", "skipped": "-"}
_COLOURS = {"ok": "", "todo": "bold yellow", "skipped": "dim"}


@click.command()
@click.argument("config", type=click.Path(path_type=Path), default="agent.toml")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the findings as one JSON object, for programs."
)
def doctor(config: Path, as_json: bool) -> None:
    """Check a device, from its packages to its fleet, and say what to do.

    CONFIG is the device's configuration file, by default agent.toml. The agent may run meanwhile or
    not. The exit code is 0 if nothing must be done, and 19 otherwise.
    """
    from fedclip_edge.processes.blas import limit_blas_threads

    limit_blas_threads()  # before numpy is imported
    from fedclip_edge import log
    from fedclip_edge.agent.doctor.checks import checks_of
    from fedclip_edge.agent.doctor.finding import of_error, run_all
    from fedclip_edge.config.agent import load_agent
    from fedclip_edge.errors import CheckError, ConfigError

    log.redirect(lambda _name, _fields: None)  # the findings say what a check logs
    try:
        loaded = load_agent(config)
    except ConfigError as error:
        found = [of_error("settings", error)]
    else:
        found = run_all(checks_of(loaded))
    click.echo(_json(config, found) if as_json else _table(found))
    todo = sum(finding.state == "todo" for finding in found)
    if todo:
        raise CheckError(
            f"{todo} of {len(found)} checks ask for a step; do what the lines after -> say, the "
            "first one first"
        )


def _json(config: Path, found: Sequence[Finding]) -> str:
    rows = [
        {"name": one.name, "state": one.state, "said": one.said, "todo": one.todo} for one in found
    ]
    passes = all(one.state != "todo" for one in found)
    return json.dumps({"config": str(config), "passes": passes, "checks": rows})


def _table(found: Sequence[Finding]) -> str:
    from fedclip_edge.reporting.table import aligned, width_of

    rows, colours = [], []
    for one in found:
        rows.append((_MARKS[one.state], one.name, one.said))
        colours.append(_COLOURS[one.state])
        if one.todo:
            rows.append(("", "", f"-> {one.todo}"))
            colours.append(_COLOURS[one.state])
    width = width_of(sys.stdout)
    return aligned(
        rows, left=2, gap="  ", align="lll", width=width, colours=colours if width else ()
    )
