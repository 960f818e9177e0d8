"""The run and the configuration file that `run show` and `run export` name, and their journal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fedclip_edge.config.fleet import FleetConfig
    from fedclip_edge.coordinator.journal import Journal
    from fedclip_edge.coordinator.journal_tables import Run

C = TypeVar("C", bound=Callable[..., Any])


def run_argument(command: C) -> C:
    """Add the argument RUN and the option --config to a command."""
    config = click.option(
        "--config",
        type=click.Path(path_type=Path),
        default="fleet.toml",
        show_default=True,
        help="The configuration file that `serve` uses.",
    )
    return click.argument("run", required=False)(config(command))


@contextlib.contextmanager
def opened_run(fleet: FleetConfig, run: str | None) -> Iterator[tuple[Journal, Run]]:
    """Open the journal to read it, and find the run in it; without a name, the newest one.

    Raises ConfigError if the journal has no such run, and the errors of `open_journal_to_read`.
    """
    from fedclip_edge.coordinator.journal import open_journal_to_read
    from fedclip_edge.coordinator.model_lookup import find_run

    with contextlib.closing(open_journal_to_read(fleet.journal)) as journal:
        yield journal, find_run(journal, run)
