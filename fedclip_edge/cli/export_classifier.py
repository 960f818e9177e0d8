"""`fedclip-edge export-classifier`: a trained classifier as one self-contained ONNX file."""

from __future__ import annotations

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.command("export-classifier")
@click.option("--bundle", required=True, type=_PATH, help="The folder that `export` wrote.")
@click.option("--model", metavar="RUN_OR_FILE", help="What `serve` trained.")
@click.option("--zero-shot", is_flag=True, help="In place of --model: nothing trained.")
@click.option(
    "--journal",
    default="journal.sqlite",
    show_default=True,
    type=_PATH,
    help="Where a RUN is looked up.",
)
@click.option("--out", required=True, type=_PATH, help="The .onnx file to write.")
@click.option("--replace", is_flag=True, help="Replace a file that is there already.")
def export_classifier(
    bundle: Path, model: str | None, zero_shot: bool, journal: Path, out: Path, replace: bool
) -> None:
    """Write what was trained as one ONNX file.

    Encoder, adapter and class texts in one graph: pixels -> probabilities.

    RUN_OR_FILE is a models/RUN.safetensors that `serve` wrote, a journal, or a run's id. The
    file runs with onnxruntime alone; labels and the scaling of pictures are in its metadata.
    """
    if (model is None) != zero_shot:
        raise click.UsageError("Give either --model RUN_OR_FILE or --zero-shot.")
    from fedclip_edge.cli.export_screens import facts
    from fedclip_edge.coordinator.model_lookup import find_model
    from fedclip_edge.exporting import classifier
    from fedclip_edge.vision.bundle import read_bundle
    from fedclip_edge.vision.bundle_warnings import bundle_warnings

    opened = read_bundle(bundle)
    trained = None if model is None else find_model(model, journal, opened)
    written = classifier.export_classifier(opened, trained, out, replace_existing=replace)
    manifest, names = opened.manifest, opened.classes.names
    side = manifest.preprocessing.image_size
    by = "zero-shot: nothing trained"
    if trained is not None:
        by = f"{trained.run}, round {trained.model.round} of {trained.plan.rounds} "
        by += f"({trained.model.method})"
    rows = [
        ("encoder", f"{manifest.model}, {manifest.pretrained}, {manifest.precision}"),
        ("model", by),
        ("input", f"pixels, uint8 [batch, {side}, {side}, 3], red, green, blue"),
        ("output", f"probabilities, float32 [batch, {len(names)}]"),
        ("opset", str(written.opset)),
        ("difference", f"{written.difference:.1e} from `predict`, relative"),
        ("size", f"{out.stat().st_size / 1e6:.1f} MB"),
    ]
    click.echo(f"Wrote {out}\n")
    click.echo(facts(rows))
    for caution in bundle_warnings(manifest):
        click.echo(f"Note: {caution}.", err=True)
    click.echo("\nTo use it, with onnxruntime, numpy and Pillow alone:\n")
    snippet = classifier.usage(out, manifest.preprocessing)
    click.echo("\n".join(f"    {line}" for line in snippet.splitlines()))
