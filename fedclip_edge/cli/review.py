"""`fedclip-edge review`: what to label next on a device, and which labels look wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedclip_edge.agent.review import Review

_SHOWN = 10


@click.command()
@click.argument("config", type=click.Path(path_type=Path), default="agent.toml")
@click.option(
    "--most",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    help="Pictures in each list, at most.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, for programs.")
def review(config: Path, most: int, as_json: bool) -> None:
    """Show which pictures to label next on this device, and which labels look wrong.

    The lists are also written to the folder review in the device's state_dir. Nothing leaves the
    device. Its agent may run meanwhile.

    CONFIG is the device's configuration file, by default agent.toml.
    """
    from fedclip_edge.processes.blas import limit_blas_threads

    limit_blas_threads()  # before numpy is imported
    import json
    from dataclasses import asdict

    from fedclip_edge.agent.bundle_store import BundleStore, fetched_folder
    from fedclip_edge.agent.review_files import review_device, write_review
    from fedclip_edge.cli.progress import note, progress_bar
    from fedclip_edge.config.agent import load_agent
    from fedclip_edge.errors import ConfigError

    settings = load_agent(config)
    bundle = BundleStore(fetched_folder(settings.state_dir), settings.bundle).open()
    if bundle is None:
        raise ConfigError(
            f"the device of {config} has no bundle yet; start its agent, which fetches one"
        )
    with progress_bar("encoding pictures") as progress:
        found, skipped = review_device(settings, bundle, most, progress)
    folder = write_review(settings.state_dir, found)
    if as_json:
        click.echo(json.dumps({**asdict(found), "folder": str(folder)}, default=str))
        return
    bases = [settings.data.folder]
    if settings.inbox is not None:
        bases.append(settings.inbox.folder.parent)
    _show(found, bases)
    click.echo(f"\nall of it is in {folder}")
    if skipped:
        note(f"{len(skipped)} pictures cannot be read; `fedclip-edge agent` names them in its log")


def _show(found: Review, bases: Sequence[Path]) -> None:
    def name(path: Path) -> str:
        inside = (path.relative_to(base) for base in bases if path.is_relative_to(base))
        return str(next(inside, path))

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{100 * share:.1f}"

    click.echo(f"{found.labelled} labelled and {found.unlabelled} unlabelled pictures")
    _table(
        "label next",
        ("picture", "looks like", "%", "because it is"),
        [
            (name(one.path), one.label, percent(one.probability), one.reason)
            for one in found.label_next
        ],
        align="llrl",
    )
    _table(
        "these labels look wrong",
        ("picture", "label", "%", "looks like", "%"),
        [
            (
                name(one.path),
                one.label,
                percent(one.probability),
                one.likelier,
                percent(one.likelier_probability),
            )
            for one in found.looks_mislabelled
        ],
        align="llrlr",
    )
    advice = {
        "too few": "too few pictures",
        "more": "more pictures would help",
        "enough": "hardly gains from more",
    }
    _table(
        "classes",
        ("class", "pictures", "% from half", "% from most", ""),
        [
            (
                one.name,
                str(one.pictures),
                percent(one.accuracy_half),
                percent(one.accuracy),
                advice[one.advice],
            )
            for one in found.classes
        ],
        align="lrrrl",
    )


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> None:
    import sys

    from fedclip_edge.reporting.table import aligned, width_of

    click.echo(f"\n{title}")
    if not rows:
        click.echo("  none")
        return
    shown = [head, *rows[:_SHOWN]]
    click.echo(aligned(shown, gap="  ", align=align, width=width_of(sys.stdout)))
    if len(rows) > _SHOWN:
        click.echo(f"and {len(rows) - _SHOWN} more")
