"""`fedclip-edge export-classifier`: a trained classifier as one self-contained ONNX file."""

from __future__ import annotations

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.command("export-classifier")
@click.option(
    "--bundle",
    required=True,
    type=_PATH,
    help="Bundle of the fleet: the folder that `export` wrote.",
)
@click.option(
    "--model",
    metavar="RUN_OR_FILE",
    help="Trained model: a .safetensors file, a journal of `serve` (its newest run is used), or "
    "the id of a run in --journal.",
)
@click.option(
    "--zero-shot",
    is_flag=True,
    help="Export CLIP without any training, instead of a --model.",
)
@click.option(
    "--journal",
    default="journal.sqlite",
    show_default=True,
    type=_PATH,
    help="Journal (SQLite file of `serve`) in which a run id given as --model is looked up.",
)
@click.option(
    "--out", required=True, type=_PATH, help="ONNX file to write, such as classifier.onnx."
)
@click.option("--replace", is_flag=True, help="Overwrite the --out file if it exists.")
def export_classifier(
    bundle: Path, model: str | None, zero_shot: bool, journal: Path, out: Path, replace: bool
) -> None:
    """Write a trained classifier as one ONNX file.

    The file holds the encoder, the adapter and the class texts as one graph, from pixels to class
    probabilities. It needs only onnxruntime. The class names and the preprocessing of pictures are
    in its metadata. If the model has a threshold, the file also says which pictures are unknown.

    RUN_OR_FILE is a file models/RUN.safetensors that `serve` wrote, a device's
    personal.safetensors, a journal, or the id of a run.
    """
    if (model is None) != zero_shot:
        raise click.UsageError("Give either --model RUN_OR_FILE or --zero-shot.")
    from fedclip_edge.cli.export_screens import facts
    from fedclip_edge.coordinator.model_lookup import find_model
    from fedclip_edge.exporting import classifier
    from fedclip_edge.learning import unknown
    from fedclip_edge.learning.run_steps import exchanges
    from fedclip_edge.vision.bundle import read_bundle
    from fedclip_edge.vision.bundle_warnings import bundle_warnings

    opened = read_bundle(bundle)
    trained = None if model is None else find_model(model, journal, opened)
    written = classifier.export_classifier(opened, trained, out, replace_existing=replace)
    manifest, names = opened.manifest, opened.classes.names
    side = manifest.preprocessing.image_size
    by = "zero-shot: no trained model"
    if trained is not None:
        by = f"{trained.run}, round {trained.model.round} of {exchanges(trained.plan)} "
        by += f"({trained.model.method})"
    rule = unknown.rule_of({} if trained is None else trained.model.parameters)
    more = []
    if rule.applies:
        more.append(("", "score, float32 [batch]"))
        more.append(("", f"unknown, bool [batch]: the score is below {rule.threshold:.4g}"))
    rows = [
        ("encoder", f"{manifest.model}, {manifest.pretrained}, {manifest.precision}"),
        ("model", by),
        ("input", f"pixels, uint8 [batch, {side}, {side}, 3], red, green, blue"),
        ("output", f"probabilities, float32 [batch, {len(names)}]"),
        *more,
        ("opset", str(written.opset)),
        ("difference", f"{written.difference:.1e} from `predict`, relative"),
        ("size", f"{out.stat().st_size / 1e6:.1f} MB"),
    ]
    click.echo(f"Wrote {out}\n")
    click.echo(facts(rows))
    for caution in bundle_warnings(manifest):
        click.echo(f"Note: {caution}.", err=True)
    click.echo("\nTo use it, with onnxruntime, numpy and Pillow alone:\n")
    snippet = classifier.usage(out, manifest.preprocessing, says_unknown=rule.applies)
    click.echo("\n".join(f"    {line}" for line in snippet.splitlines()))
