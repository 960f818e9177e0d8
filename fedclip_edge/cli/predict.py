"""`fedclip-edge predict`: labels for pictures, from a bundle and a trained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from fedclip_edge.cli.encoder_options import cache_option, encoder_options

if TYPE_CHECKING:
    from fedclip_edge.config.agent import EncoderConfig

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("pictures", nargs=-1, required=True, type=_PATH)
@click.option(
    "--bundle",
    type=_PATH,
    help="Bundle of the fleet: the folder that `export` wrote. Without it, the bundle and the "
    "model of the device in --config are used.",
)
@click.option(
    "--config",
    metavar="AGENT_TOML",
    type=_PATH,
    help="Configuration file of a device on this machine, to use its bundle and its model. "
    "[default: agent.toml in this folder, or else /etc/fedclip-edge/agent.toml]",
)
@click.option(
    "--model",
    metavar="RUN_OR_FILE",
    help="Trained model: a .safetensors file, a journal of `serve` (its newest run is used), or "
    "the id of a run in --journal. Without it, a named bundle gives zero-shot labels: from CLIP "
    "without training.",
)
@click.option(
    "--journal",
    default="journal.sqlite",
    show_default=True,
    type=_PATH,
    help="Journal (SQLite file of `serve`) in which a run id given as --model is looked up.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="CSV file to write instead of printing a table; an existing file is overwritten.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per picture, for programs."
)
@click.option(
    "--top",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    metavar="K",
    help="Number of labels to show per picture, most likely first; at most the number of classes.",
)
@click.option(
    "--unknown-below",
    type=click.FloatRange(-1, 100),
    metavar="SCORE",
    help="Call a picture unknown, of none of the classes, if its score is below this. [default: "
    "the model's own threshold, if it has one]",
)
@click.option("--no-unknown", is_flag=True, help="Call no picture unknown, and show no scores.")
@cache_option
@encoder_options
def predict(
    pictures: tuple[Path, ...],
    bundle: Path | None,
    config: Path | None,
    model: str | None,
    journal: Path,
    out: Path | None,
    as_json: bool,
    top: int,
    unknown_below: float | None,
    no_unknown: bool,
    cache: Path | None,
    encoder: EncoderConfig,
) -> None:
    """Label pictures with the classes of a bundle, or on a device with the model that it uses.

    PICTURES are files or folders. Folders are searched recursively. If the pictures are in folders
    that are named after the classes, the accuracy is printed at the end.

    RUN_OR_FILE is a file models/RUN.safetensors that `serve` wrote, a device's
    personal.safetensors, a journal, or the id of a run.

    A picture is unknown if its score is below a threshold, which a model learns from the fleet's
    own pictures. The most likely class is shown all the same.
    """
    if no_unknown and unknown_below is not None:
        raise click.UsageError("Give either --unknown-below SCORE or --no-unknown.")
    if bundle is not None and config is not None:
        raise click.UsageError("Give either --bundle or --config: a device has its own bundle.")
    from fedclip_edge.cli import predict_source
    from fedclip_edge.cli.predict_output import Rows, Table, Tally, csv_bytes
    from fedclip_edge.cli.progress import note, progress_bar
    from fedclip_edge.errors import DataError
    from fedclip_edge.learning.classification import threshold_of
    from fedclip_edge.learning.run_steps import exchanges
    from fedclip_edge.prediction import Prediction, find_pictures, predict_pictures
    from fedclip_edge.storage import atomic
    from fedclip_edge.vision.bundle_warnings import bundle_warnings
    from fedclip_edge.vision.lazy_encoder import LazyEncoder
    from fedclip_edge.vision.picture_files import LeftOut
    from fedclip_edge.vision.shared_cache import SharedCache, default_path

    if bundle is None:
        source = predict_source.of_device(config, model, journal)
    else:
        source = predict_source.named(bundle, model, journal)
    trained, manifest, names = source.trained, source.bundle.manifest, source.classes.names
    asked, left_out = find_pictures(pictures, names)
    if source.encoder is not None and not _is_given("provider"):
        encoder = replace(source.encoder, threads=encoder.threads)
    embedder = LazyEncoder(source.bundle, encoder)
    for caution in bundle_warnings(manifest):
        note(caution)

    threshold = None
    if not no_unknown:
        its = threshold_of(None if trained is None else trained.model)
        threshold = its if unknown_below is None else unknown_below
    rows = Rows(names, min(top, len(names)), trained is not None, threshold)
    tally = Tally(rows)
    table: Table | None = None
    written: list[list[str]] = []
    with (
        SharedCache(cache or default_path(), note) as known,
        progress_bar("predicting") as bar,
    ):
        if out is None and not as_json:
            table = Table(asked, rows)
        results = predict_pictures(
            asked,
            embedder,
            manifest.preprocessing,
            source.classes,
            None if trained is None else trained.model,
            encoder,
            cache=known,
        )
        for done, result in enumerate(results, start=1):
            tally.add(result)
            if isinstance(result, Prediction):
                if as_json:
                    click.echo(rows.as_json(result))
                if out is not None:
                    written.append(rows.as_csv(result))
                if table is not None:
                    table.show(result)
            if table is None and not as_json:  # otherwise the output shows progress
                bar(done, len(asked))
    left_out += LeftOut(skipped=tuple(tally.skipped))
    for line in left_out.lines():
        click.echo(line, err=True)
    if not tally.read:
        raise DataError("none of the pictures could be read (the reasons are above); give others")
    if out is not None:
        atomic.write_file(out, csv_bytes([rows.csv_head(), *written]))
    by = f"zero-shot ({source.zero_shot_because})"
    if trained is not None:
        by = f"{trained.run}, round {trained.model.round} of {exchanges(trained.plan)}"
        by += f" ({trained.model.method})"
    lines = [
        f"{tally.summary(left_out, known.found)}; {by}",
        *tally.unknown(),
        *tally.accuracy(adapted=trained is not None),
    ]
    if out is not None:
        lines.insert(0, f"Wrote {out}")
    if table is not None:
        lines.insert(0, "")
    click.echo("\n".join(lines), err=as_json)


def _is_given(option: str) -> bool:
    """Return whether the user gave this option of the command."""
    source = click.get_current_context().get_parameter_source(option)
    return source is not ParameterSource.DEFAULT
