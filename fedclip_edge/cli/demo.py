"""`fedclip-edge demo`: a whole federation on one machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedclip_edge.cli.progress import Bar, note, progress_bar

if TYPE_CHECKING:
    from fedclip_edge.demo.baselines import Baselines
    from fedclip_edge.demo.federation import Started
    from fedclip_edge.demo.stage import Stage
    from fedclip_edge.records import Scalar

_FOLDER = click.Path(path_type=Path)


@click.command()
@click.option(
    "--out",
    type=_FOLDER,
    default="demo-run",
    show_default=True,
    help="Folder for all files of the demo: pictures, bundle, configurations, logs, journal, "
    "summary.json and report.html. A second demo in it reuses pictures, bundle and features.",
)
@click.option(
    "--data",
    type=_FOLDER,
    help="Folder of your own pictures, arranged as DOMAIN/CLASS/FILE; each domain becomes a device. "
    "Needs --bundle. [default: draw pictures in five styles]",
)
@click.option(
    "--bundle",
    type=_FOLDER,
    help="Bundle (the folder that `export` wrote) with your own encoder. [default: a tiny CLIP, "
    "made for the drawn pictures]",
)
@click.option(
    "--hold-out",
    default="cartoon",
    show_default=True,
    help="Domain that no device trains on; the fleet's model is tested on its pictures.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 100_000),
    help="Number of training rounds, also those of FedCLIP to compare with. [default: the "
    "method's own number, such as 11 for auto, 30 for fedclip and 1 for gda]",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Random seed for the drawn pictures and for the training.",
)
@click.option(
    "--per-class",
    default=170,
    show_default=True,
    type=click.IntRange(10, 10_000),
    help="Number of pictures to draw for each of the 10 classes in each style; unused with --data.",
)
@click.option(
    "--method",
    default="auto",
    show_default=True,
    help="Training method of the fleet, such as auto, fedclip, gda or ridge.",
)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Option of the method, such as lr=0.001; may be repeated.",
)
def demo(
    out: Path,
    data: Path | None,
    bundle: Path | None,
    hold_out: str,
    rounds: int | None,
    seed: int,
    per_class: int,
    method: str,
    options: tuple[str, ...],
) -> None:
    """Run a whole federation on this machine.

    It starts a broker, a coordinator and one device for each picture style (domain). One style is
    held out: no device trains on it, and the fleet's model is tested on it. To compare, the demo
    also trains FedCLIP as published, and each device alone. At the end it prints a table and writes
    OUT/report.html and OUT/summary.json. Nothing is downloaded.
    """
    import time

    from fedclip_edge import log
    from fedclip_edge.demo import examples, federation, report, shared_features, stage, summary
    from fedclip_edge.errors import RunError
    from fedclip_edge.learning import methods
    from fedclip_edge.learning.run_steps import exchanges, has_vote
    from fedclip_edge.reporting import run_table
    from fedclip_edge.reporting.run_words import comparison, progress
    from fedclip_edge.reporting.table import width_of
    from fedclip_edge.storage.lock import lock_file
    from fedclip_edge.vision.shared_cache import SharedCache, default_path

    began = time.monotonic()
    log.mute()  # the events of this process would disturb the output
    settings = stage.Settings(
        out=out,
        data=data,
        bundle=bundle,
        hold_out=hold_out,
        rounds=rounds or 0,
        seed=seed,
        per_class=per_class,
        method=method,
        options=_parse(options),
    )
    plan = settings.plan
    for line in stage.check(settings).lines():
        click.echo(line)
    out.mkdir(parents=True, exist_ok=True)
    lock = lock_file(out / stage.MARKER, f"--out {out}")
    staged = stage.prepare(settings, click.echo)
    if data is not None:  # drawn pictures are encoded within seconds, and nothing else uses them
        with SharedCache(default_path(), note) as known:
            shared_features.give(staged, known)
    prepared = time.monotonic()
    live = _Live(staged.held_out.id, exchanges(plan), ends_with_vote=has_vote(plan))
    try:
        broker = federation.run(staged, live.started, live.happened)
    finally:
        live.end()
    ended = time.monotonic()
    if data is not None:
        with SharedCache(default_path(), note) as known:
            shared_features.take(staged, known)
    compared = _compare(staged)
    done = time.monotonic()
    seconds = {
        "prepare": prepared - began,
        "federation": ended - prepared,
        "baselines": done - ended,
        "total": done - began,
    }
    figures = summary.summarise(staged, broker, seconds, compared)
    predictions = {
        device.id: device.state_dir / "predictions.csv"
        for device in (*staged.devices, staged.held_out)
    }
    shown = examples.choose_examples(predictions, per_device=12, seed=seed)
    report.write_report(out / "report.html", figures, shown)
    summary.write(out / "summary.json", figures)
    width = width_of(sys.stdout)
    click.echo(f"\n{run_table.table(figures, width)}\n\n{run_table.notes(figures, width)}\n")
    for sentence in comparison(figures):
        click.echo(f"{run_table.filled(sentence, width)}\n")
    personal = staged.devices[0].state_dir / "personal.safetensors"
    model = personal if methods.get(method).traits.is_personal else staged.journal
    chosen = ", ".join(f"{name}={value}" for name, value in figures["options"].items())
    click.echo(
        f"{figures['world']}; method {method} with {chosen or 'the default options'}; "
        f"{progress(figures)}; {seconds['total']:.0f} s in all, "
        f"{seconds['federation']:.0f} s of them for the federation\n"
        f"report: {out / 'report.html'}   all figures: {out / 'summary.json'}\n"
        f"use the model: fedclip-edge predict --bundle {staged.bundle} --model {model} PICTURES"
    )
    lock.close()
    if figures["rounds_closed"] != figures["rounds"]:
        raise RunError(
            f"the run ended after {progress(figures)}; the logs in {out / 'logs'} show the reason"
        )


def _compare(staged: Stage) -> Baselines | None:
    """Train the baselines; None, with a note, if that fails: the fleet's figures are there."""
    from fedclip_edge.demo import baselines
    from fedclip_edge.errors import FedclipError

    click.echo("training FedCLIP as published, and each device alone, to compare")
    try:
        with progress_bar("rounds to compare with") as tell:
            return baselines.train(staged, tell)
    except FedclipError as error:
        note(f"there is nothing to compare the fleet with: {error}")
        return None


def _parse(options: tuple[str, ...]) -> Mapping[str, Scalar]:
    """Parse NAME=VALUE options; a value that is not a TOML scalar is kept as text."""
    from fedclip_edge.storage.toml_file import parse_value

    parsed = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{option!r} is not NAME=VALUE", param_hint="--option")
        parsed[name] = parse_value(value)
    return parsed


class _Live:
    """Progress while the fleet runs: a bar on a terminal, a line per step elsewhere."""

    def __init__(self, held_out: str, exchanges: int, *, ends_with_vote: bool = False) -> None:
        self._held_out = held_out
        self._exchanges = exchanges
        self._rounds = exchanges - ends_with_vote
        self._accuracy = "not tested yet"
        self._bar = Bar(sys.stdout)

    def started(self, fleet: Started) -> None:
        self._bar.say(f"broker: {fleet.broker} on {fleet.address.host}:{fleet.address.port}")
        self._bar.say("starting the devices; each encodes its pictures first")

    def happened(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "joined":
            self._bar.say(f"{event['device']} joined ({event['roles']})")
        elif event["event"] == "encoding_pictures":
            self._say(event, f"encodes its pictures: {event['done']} of {event['total']}")
        elif event["event"] in ("not_used", "picture_skipped"):
            from fedclip_edge.vision.picture_files import printable

            path = printable(event.get("path") or event["picture"])
            more = f" (and skips {event['more']} more)" if "more" in event else ""
            self._say(event, f"skips {path}: {event['reason']}{more}")
        elif event["event"] == "files_ignored":
            kinds = f" ({event['kinds']})" if event["kinds"] else ""
            self._say(event, f"ignores files that are not pictures: {event['count']}{kinds}")
        elif event["event"] == "report" and event["device"] == self._held_out:
            accuracy = f"{100 * event['federated']:.1f} %"
            if event["round"] == self._exchanges:
                last = "vote" if self._exchanges > self._rounds else "last round"
                self._bar.say(f"held-out {self._held_out} {accuracy} after the {last}")
            self._accuracy = f"{accuracy} (round {event['round']})"
        elif event["event"] == "round_closed":
            self._round(event["round"], event)

    def _round(self, closed: int, event: Mapping[str, Any]) -> None:
        text = (
            f"{event['contributions']}/{event['cohort']} devices in {event['seconds']:.3f} s; "
            f"held-out {self._held_out} {self._accuracy}"
        )
        if self._bar.is_drawn:
            self._bar.show(closed, self._exchanges, text)
        else:
            what = f"round {closed}/{self._rounds}" if closed <= self._rounds else "the vote"
            click.echo(f"{what}: {text}")

    def _say(self, event: Mapping[str, Any], text: str) -> None:
        """Print a line about a device."""
        self._bar.say(f"{event.get('trainer') or event['device']} {text}")

    def end(self) -> None:
        self._bar.end()
