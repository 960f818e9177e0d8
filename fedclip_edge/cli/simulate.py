"""`fedclip-edge simulate`: a comparison of methods and settings on many virtual devices."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedclip_edge.cli.encoder_options import cache_option, encoder_options
from fedclip_edge.cli.simulate_inputs import open_hosts, read_pool
from fedclip_edge.cli.simulate_progress import Show

if TYPE_CHECKING:
    from fedclip_edge.config.agent import EncoderConfig
    from fedclip_edge.simulating.comparison import Choices
    from fedclip_edge.simulating.pool import Pool
    from fedclip_edge.simulating.results import Outcome

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option(
    "--data",
    type=_FOLDER,
    help="Folder of pictures, arranged as CLASS/FILE or as DOMAIN/CLASS/FILE; needs --bundle. A "
    "domain is a group of pictures of one kind, such as one camera's or one style's.",
)
@click.option(
    "--bundle",
    type=_FOLDER,
    help="Bundle (the folder that `export` wrote) with the encoder for --data, or with the class "
    "texts for --features.",
)
@click.option(
    "--features",
    type=click.Path(dir_okay=False, path_type=Path),
    help="NumPy .npz file of computed features, instead of --data, with the arrays train_x, "
    "train_y, test_x and test_y; class_texts and classes unless --bundle is given; optionally "
    "train_group and test_group (the domains) and logit_scale.",
)
@click.option(
    "--methods",
    "asked",
    help="Methods to compare, separated by commas. NAME:local trains each device alone, "
    "NAME:pooled trains one model on the pictures of all devices, and NAME@OPTION=VALUE,... sets "
    "options. [default: zeroshot,fedclip,auto; without auto if --rounds is 1 or with --base-to-new, "
    "for which it does not work]",
)
@click.option(
    "--split",
    default="domain",
    show_default=True,
    help="How pictures are divided among the devices: domain (each device gets pictures of one "
    "domain), iid (each gets an equal share of every class) or dirichlet:ALPHA (each gets random, "
    "unequal shares of the classes; ALPHA is 0.001 to 1000000, and smaller is more unequal).",
)
@click.option(
    "--devices",
    type=click.IntRange(1, 1_000_000),
    help="Number of virtual devices. [default: one for each domain with --split domain, else 10]",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 1_000_000),
    help="Number of rounds for each method that can run more than one. [default: each method's own "
    "number]",
)
@click.option(
    "--seeds",
    default=1,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Number of repetitions with different random seeds. With 2 or more, the results are means "
    "and standard deviations.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Random seed of the first repetition; each further one adds 1.",
)
@click.option(
    "--shots",
    type=click.IntRange(1),
    help="Largest number of training pictures per class on a device. [default: no limit]",
)
@click.option(
    "--hold-out",
    default="",
    metavar="DOMAIN|all",
    help="Domain that no device trains on; each model is tested on its pictures. With all, every "
    "domain is held out in turn. [default: none]",
)
@click.option(
    "--base-to-new",
    is_flag=True,
    help="Train on the first half of the classes (base) and test on both halves (base and new).",
)
@click.option(
    "--leave-out",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    metavar="N",
    help="Leave N classes out, drawn for each seed: no device trains on their pictures, and they are "
    "in no class list. Their test pictures show how well a model recognises pictures of none of "
    "its classes.",
)
@click.option(
    "--least",
    default=5,
    show_default=True,
    type=click.IntRange(0),
    help="Smallest number of training pictures on a device with the splits iid and dirichlet: a "
    "device with fewer gets some from the largest devices.",
)
@click.option(
    "--noisy",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Fraction of the devices that send random noise instead of their updates, to test how "
    "robust a strategy is.",
)
@click.option(
    "--min-per-class",
    type=click.IntRange(1),
    help="Withhold the classes of which a device has fewer pictures, as agents do: their default is "
    "5. [default: none is withheld]",
)
@click.option(
    "--validation",
    default=0.2,
    show_default=True,
    type=click.FloatRange(0, 0.9),
    help="Fraction of the training rows in --features that is set aside to choose settings. "
    "Pictures in --data are always split into 60 % training, 20 % validation and 20 % test.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 4096),
    help="Number of processes that train the devices in parallel. [default: all cores; with --ray, "
    "all free cores of the cluster]",
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Train on the machines of this Ray cluster: HOST:PORT of its head, or auto for the cluster "
    "that this machine belongs to. [default: this machine alone]",
)
@click.option(
    "--out",
    default="simulation",
    show_default=True,
    type=_FOLDER,
    help="Folder for results.csv, summary.json and report.html.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the content of summary.json instead of a table, for programs.",
)
@cache_option
@encoder_options
def simulate(
    data: Path | None,
    bundle: Path | None,
    features: Path | None,
    asked: str | None,
    split: str,
    devices: int | None,
    rounds: int | None,
    seeds: int,
    seed: int,
    shots: int | None,
    hold_out: str,
    base_to_new: bool,
    leave_out: int,
    least: int,
    noisy: float,
    min_per_class: int | None,
    validation: float,
    workers: int | None,
    ray: str | None,
    out: Path,
    as_json: bool,
    cache: Path | None,
    encoder: EncoderConfig,
) -> None:
    """Compare methods on many virtual devices.

    The devices are simulated on this machine or, with --ray, on several. No broker is needed.

    Accuracies are measured on test pictures and shown next to those of zero-shot CLIP, which is
    CLIP without any training. Byte counts are those of the models and updates that real devices
    would receive and send. The results are written to OUT/results.csv, OUT/summary.json and
    OUT/report.html.

    \b
    Examples of --methods:
      zeroshot,fedclip
          two methods
      fedclip,fedclip@lr=1e-3,loss=cross-entropy
          the same method with other options (after the @:
          options of the method, or of the plan, such as
          rounds or codec_up)
      linear,linear@strategy=fedadam,strategy.lr=0.01
          another strategy to combine updates, with an
          option of the strategy
      fedclip,fedclip@personal_epochs=5
          at the end, each device trains a model of its own
          for 5 epochs
      fedclip,fedclip:local
          each device trains alone: the lower reference
      fedclip,fedclip:pooled
          one model on the pictures of all devices:
          the upper reference
    """  # noqa: D301 - click reads the backslash
    from fedclip_edge import log
    from fedclip_edge.simulating import comparison

    # Imported here so that a missing jinja2 is reported now, not after hours.
    from fedclip_edge.simulating import report as _report  # noqa: F401
    from fedclip_edge.simulating.settings import parse_settings
    from fedclip_edge.simulating.splits import parse_split

    log.mute()  # event lines would disturb the output
    if asked is None:
        asked = "zeroshot,fedclip" if base_to_new or rounds == 1 else "zeroshot,fedclip,auto"
    choices = comparison.Choices(
        settings=parse_settings(asked, rounds),
        split=parse_split(split),
        devices=devices,
        first_seed=seed,
        seeds=seeds,
        shots=shots,
        hold_out=hold_out,
        base_to_new=base_to_new,
        leave_out=leave_out,
        least=least,
        noisy=noisy,
        min_per_class=min_per_class,
    )
    pool = read_pool(data, bundle, features, cache, encoder, validation)
    comparison.check(choices, pool)
    out.mkdir(parents=True, exist_ok=True)
    show = Show(comparison.count_rounds(choices, pool))
    done: list[Outcome] = []
    try:
        with (out / "results.csv").open("w", encoding="utf-8", newline="") as file:
            from fedclip_edge.simulating import results

            file.write(results.header())
            with open_hosts(pool, workers, ray) as hosts:
                for step in comparison.compare(choices, pool, hosts, show.note):
                    file.write(step.lines)
                    file.flush()
                    done += step.outcomes
                    show.step(step)
    finally:
        show.end()
        if done:
            _finish(done, choices, pool, out, as_json=as_json)


def _finish(
    done: Sequence[Outcome], choices: Choices, pool: Pool, out: Path, *, as_json: bool
) -> None:
    import json

    from fedclip_edge.reporting.table import width_of
    from fedclip_edge.simulating import report, summary, tables
    from fedclip_edge.storage import atomic

    rows = summary.summarise(done)
    whole = {
        "split": str(choices.split),
        "noisy": choices.noisy,
        "min_per_class": choices.min_per_class,
        "leave_out": choices.leave_out,
        "pictures": len(pool.labels),
        "classes": list(pool.classes.names),
        "encoder_id": pool.encoder_id,
        "rows": summary.to_json(rows),
    }
    atomic.write_file(out / "summary.json", (json.dumps(whole, indent=2) + "\n").encode())
    report.write_report(out / "report.html", rows, done, whole)
    if as_json:
        click.echo(json.dumps(whole))
        return
    width = width_of(sys.stdout)
    click.echo(f"\n{tables.tables(rows, width)}\n\n{tables.notes(rows, width)}\n")
    click.echo(
        f"report: {out / 'report.html'}   every round: {out / 'results.csv'}   "
        f"all figures: {out / 'summary.json'}"
    )
