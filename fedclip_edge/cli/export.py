"""`fedclip-edge export`: makes a bundle, the folder that a fleet shares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fedclip_edge.vision.bundle import Bundle

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOREIGN = ("--onnx", "--preprocess", "--class-texts", "--classes")


@click.command()
@click.argument("source", required=False)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder to write; it must not exist yet.",
)
@click.option("--classes", type=_FILE, help="Class names: a .json list, or a .txt with one a line.")
@click.option("--prompt", help="Text with {} where the class name goes; for SOURCE only.")
@click.option("--onnx", type=_FILE, help="Somebody's own encoder, in place of SOURCE.")
@click.option("--preprocess", type=_FILE, help="How that encoder wants its pictures, in TOML.")
@click.option("--class-texts", type=_FILE, help="Its unit text vectors [C, D], a .npy.")
@click.option("--replace", is_flag=True, help="Replace a bundle that is there already.")
def export(
    source: str | None,
    out: Path,
    classes: Path | None,
    prompt: str | None,
    onnx: Path | None,
    preprocess: Path | None,
    class_texts: Path | None,
    replace: bool,
) -> None:
    """Export an image encoder and its class texts to a bundle.

    SOURCE is `tiny`, the model of the demo, or `local-dir:FOLDER`, a folder that open_clip
    saved. An encoder that is an ONNX file already needs no SOURCE:

    \b
    fedclip-edge export tiny --out bundle
    fedclip-edge export local-dir:FOLDER --classes classes.txt --out bundle
    fedclip-edge export --onnx encoder.onnx --preprocess preprocess.toml \\
        --class-texts class_texts.npy --classes classes.json --out bundle
    """  # noqa: D301 - click wants the backspace character itself
    if source is not None:
        if onnx or preprocess or class_texts:
            raise click.UsageError("--onnx, --preprocess and --class-texts go without SOURCE.")
        bundle = _from_open_clip(source, classes, prompt, out, replace)
    elif onnx and preprocess and class_texts and classes:
        if prompt is not None:
            raise click.UsageError("--prompt goes with SOURCE; write prompt in the TOML file.")
        from fedclip_edge.exporting.foreign import export_onnx

        bundle = export_onnx(onnx, preprocess, class_texts, classes, out, replace_existing=replace)
    elif onnx or preprocess or class_texts:
        given = (onnx, preprocess, class_texts, classes)
        missing = [name for name, value in zip(_FOREIGN, given, strict=True) if value is None]
        raise click.UsageError(f"An encoder of your own also needs {', '.join(missing)}.")
    else:
        raise click.UsageError("Name a SOURCE (tiny, local-dir:FOLDER), or give --onnx.")
    click.echo(_summary(bundle))


def _from_open_clip(
    source: str, classes: Path | None, prompt: str | None, out: Path, replace: bool
) -> Bundle:
    from fedclip_edge.demo import tiny_clip

    if source != "tiny" and not source.startswith("local-dir:"):
        raise click.UsageError(f"{source!r} is no SOURCE; write tiny, or local-dir:FOLDER.")
    if source != "tiny" and classes is None:
        raise click.UsageError(f"{source} needs --classes FILE, one class name a line.")
    from fedclip_edge.exporting.inputs import read_class_names

    if classes is None:
        from fedclip_edge.demo import world

        names = world.CLASSES
    else:
        names = read_class_names(classes)
    from fedclip_edge.exporting.bundles import export_open_clip

    return export_open_clip(
        tiny_clip.MODEL_NAME if source == "tiny" else source,
        names,
        tiny_clip.PROMPT if prompt is None else prompt,
        out,
        replace_existing=replace,
    )


def _summary(bundle: Bundle) -> str:
    manifest = bundle.manifest
    preprocessing = manifest.preprocessing
    parity = "unknown"
    if manifest.parity is not None:
        worst, tolerance = manifest.parity["worst_relative"], manifest.parity["tolerance"]
        parity = f"{worst:.1e} relative, at most {tolerance:.0e} allowed"
    side = preprocessing.image_size
    rows = [
        ("model", manifest.model),
        ("input", f"{side} x {side}, {preprocessing.resize}, {preprocessing.interpolation}"),
        ("features", f"{manifest.dim} wide, {manifest.precision}"),
        ("activation", manifest.activation),
        ("classes", f"{len(bundle.classes.names)}: {_shortened(bundle.classes.names)}"),
        ("prompt", bundle.classes.prompt),
        ("parity", parity),
        ("encoder id", manifest.encoder_id[:16]),
        *((path.name, _size(path)) for path in sorted(bundle.folder.iterdir())),
    ]
    width = max(len(name) for name, _ in rows)
    table = "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
    return (
        f"Wrote the bundle {bundle.folder}\n\n{table}\n\n"
        f'Next: name it in fleet.toml and in every agent.toml, as bundle = "{bundle.folder}"'
    )


def _shortened(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 12 else ", ".join((*names[:11], "..."))


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"
