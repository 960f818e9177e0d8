"""`fedclip-edge export`: write an encoder and class texts to a bundle, which a fleet shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedclip_edge.cli.export_options import class_names, prompts_of, recipe_of, tiny_recipe
from fedclip_edge.cli.export_screens import report, shortened, summary
from fedclip_edge.cli.progress import progress_bar

if TYPE_CHECKING:
    from fedclip_edge.protocol.signing import Identity
    from fedclip_edge.vision.bundle import Bundle

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_NEXT = (
    "Next: publish a signed bundle with `fedclip-edge classes publish` on the coordinator's host;\n"
    "the boxes fetch the new texts when the next run begins. Without a signature, copy the bundle\n"
    "to every box and start a new run."
)
_FOREIGN = ("onnx", "preprocess", "class_texts", "classes")


@click.command()
@click.argument("source", required=False)
@click.option(
    "--out", type=_FOLDER, help="Folder to write; it must not exist yet, unless --replace is given."
)
@click.option(
    "--classes",
    type=_FILE,
    help="File with the class names: a .txt with one name per line, or a .json list of names. "
    "Only SOURCE tiny needs none.",
)
@click.option(
    "--pretrained",
    metavar="TAG|FILE",
    help="Weights of the model: a tag of open_clip, such as laion2b_s34b_b88k, or a file or folder "
    "that a training program saved.",
)
@click.option(
    "--like",
    metavar="TAG",
    help="With --pretrained FILE: the open_clip tag of the weights that this file was fine-tuned "
    "from. Preprocessing and activation function are taken from it, and also the text tower if the "
    "file has an image tower alone.",
)
@click.option(
    "--random-weights",
    is_flag=True,
    help="Use random weights, for tests and timings; the features are meaningless.",
)
@click.option(
    "--prompt",
    metavar="TEXT",
    help="Text from which the class texts are made, with {} in place of the class name. "
    "[default: the recipe's, otherwise 'a picture of a {}']",
)
@click.option(
    "--prompts",
    type=_FILE,
    help="File with several prompts, whose text vectors are averaged: a .txt with one prompt per "
    "line, or a .json list.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8", "int8-weights"]),
    help="Numbers in the encoder: fp32 and fp16 are 32- and 16-bit floats, int8 is 8-bit weights "
    "and activations, int8-weights is 8-bit weights only. [default: the recipe's, otherwise fp32]",
)
@click.option(
    "--calibration",
    type=_FOLDER,
    help="Folder with at least 64 pictures like those of the fleet. The exported encoder is "
    "compared with the original on them, and int8 (which requires this option) sets its value "
    "ranges by them. [default: compare on drawn pictures]",
)
@click.option(
    "--accept-parity",
    is_flag=True,
    help="Write the bundle even if its features differ from the original model's by more than the "
    "limits.",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Replace the bundle in the --out folder; all other files in that folder are deleted too.",
)
@click.option(
    "--bundle",
    type=_FOLDER,
    help="Existing bundle that gets the new --classes; its encoder stays as it is.",
)
@click.option("--onnx", type=_FILE, help="ONNX file of your own image encoder, instead of SOURCE.")
@click.option(
    "--preprocess",
    type=_FILE,
    help="TOML file that describes how pictures are prepared for the --onnx encoder.",
)
@click.option(
    "--class-texts",
    type=_FILE,
    help="NumPy .npy file with one text vector of length 1 per class, in the order of --classes: "
    "floats of shape [classes, feature width]. For --onnx, or for --bundle.",
)
@click.option(
    "--sign",
    type=_FILE,
    metavar="KEY",
    help="Sign the bundle with this export key (export/export.key of `broker init`), so that the "
    "boxes of its fleet fetch it from their coordinator.",
)
def export(**given: Any) -> None:
    """Export an image encoder and class texts to a bundle.

    SOURCE is one of: a recipe (a .toml file, as in the folder export/), the name of an open_clip
    model, local-dir:FOLDER (a model that open_clip saved), or tiny (the model of the demo). The
    features of the exported encoder are compared with those of the PyTorch model; if they differ
    by more than the limits, no bundle is written.

    \b
    fedclip-edge export export/vit-b-32.toml \\
        --classes classes.txt --out bundle
    fedclip-edge export ViT-B-16 \\
        --pretrained laion2b_s34b_b88k --precision fp16 \\
        --classes classes.txt --out bundle
    fedclip-edge export tiny --out bundle

    For an encoder that is already an ONNX file, leave out SOURCE:

    \b
    fedclip-edge export --onnx encoder.onnx \\
        --preprocess preprocess.toml \\
        --class-texts class_texts.npy \\
        --classes classes.json --out bundle

    To give an existing bundle other classes, without encoding any picture again:

    \b
    fedclip-edge export --bundle bundle --classes new.txt
    """  # noqa: D301 - click needs the backspace character
    used = {name for name, value in given.items() if value not in (None, False)}
    exporter = None
    if "sign" in used:
        from fedclip_edge.pki.bundle_signature import load_export_key

        exporter = load_export_key(given["sign"])  # before the work, which may take minutes
    if "bundle" in used:
        _replace_classes(given, used, exporter)
        return
    if "out" not in used:
        raise click.UsageError("Give the folder to write with --out FOLDER.")
    before = _serial_in(given["out"])
    bundle = _from_onnx(given, used) if "source" not in used else _from_open_clip(given, used)
    click.echo(summary(bundle, "" if exporter is None else _sign(bundle, exporter, before)))


def _from_open_clip(given: Mapping[str, Any], used: set[str]) -> Bundle:
    _refuse(used, ("onnx", "preprocess", "class_texts"), "without SOURCE")
    recipe = recipe_of(given, used)
    if "classes" not in used and given["source"] != "tiny":
        raise click.UsageError(
            f"{given['source']} needs --classes FILE, a file with one class name per line."
        )
    names = class_names(given["classes"])
    from fedclip_edge.exporting.bundles import export_open_clip

    with progress_bar("exporting") as progress:
        return export_open_clip(
            recipe,
            names,
            given["out"],
            **_judged(given),
            progress=progress,
        )


def _from_onnx(given: Mapping[str, Any], used: set[str]) -> Bundle:
    missing = [name for name in _FOREIGN if name not in used]
    if "onnx" in missing:
        raise click.UsageError(
            "Give a SOURCE (a recipe, a model of open_clip, or tiny), or an encoder with --onnx."
        )
    if missing:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise click.UsageError(f"--onnx also needs {options}.")
    _refuse(used, ("pretrained", "like", "random_weights"), "with SOURCE")
    _refuse(used, ("prompt", "prompts"), "with SOURCE; write the prompt in the --preprocess file")
    from fedclip_edge.exporting.external_onnx import export_onnx

    with progress_bar("exporting") as progress:
        return export_onnx(
            given["onnx"],
            given["preprocess"],
            given["class_texts"],
            given["classes"],
            given["out"],
            precision=given["precision"] or "fp32",
            **_judged(given),
            progress=progress,
        )


def _judged(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that both exports take, for the parity gate and the output folder."""
    from fedclip_edge.demo.gate_pictures import draw

    return {
        "calibration": given["calibration"],
        "draw": draw,
        "accept_parity": given["accept_parity"],
        "replace_existing": given["replace"],
        "say": _say,
        "report": report,
    }


def _serial_in(folder: Path) -> int:
    from fedclip_edge.pki.bundle_signature import serial_in

    return serial_in(folder)


def _sign(bundle: Bundle, exporter: Identity, before: int) -> str:
    """Sign the bundle; return a sentence about it. `before` is the serial number it had before."""
    from fedclip_edge.pki.bundle_signature import sign_bundle

    made = sign_bundle(bundle.folder, exporter, above=before)
    return f"Signed with the export key {made.key[:16]}, serial number {made.serial}."


def _replace_classes(given: Mapping[str, Any], used: set[str], exporter: Identity | None) -> None:
    _refuse(used, ("precision", "calibration", "accept_parity", "replace"), "without --bundle")
    _refuse(used, ("onnx", "preprocess"), "without --bundle")
    _refuse(
        used, ("out",), "without --bundle: the bundle is changed in place, so copy the folder first"
    )
    if "classes" not in used:
        raise click.UsageError("--bundle needs --classes FILE with the new class names.")
    from fedclip_edge.exporting import replace_classes

    before = _serial_in(given["bundle"])
    if "class_texts" in used:
        _refuse(used, ("source", "pretrained", "like", "random_weights"), "without --class-texts")
        _refuse(used, ("prompt", "prompts"), "without --class-texts")
        bundle = replace_classes.from_vectors(
            given["bundle"], given["class_texts"], given["classes"]
        )
    else:
        if "source" not in used:
            _refuse(used, ("pretrained", "like", "random_weights"), "with SOURCE")
        names, prompts = class_names(given["classes"]), prompts_of(given)
        source = recipe_of(given, used) if "source" in used else tiny_recipe(given["bundle"])
        if source is not None and str(given["source"]).endswith(".toml"):
            prompts = source.prompts  # only a recipe file has its own prompts
        with progress_bar("texts") as progress:
            bundle = replace_classes.from_model(
                given["bundle"], names, source=source, prompts=prompts, progress=progress
            )
    click.echo(
        f"Changed the classes of {bundle.folder} to {len(bundle.classes.names)}: "
        f"{shortened(bundle.classes.names)}\n\n"
        "The encoder and its id are unchanged, so cached features stay valid."
    )
    if exporter is not None:
        click.echo(_sign(bundle, exporter, before))
    elif before:
        click.echo(
            "The bundle was signed, and is not any more: sign it with `fedclip-edge bundle sign`."
        )
    click.echo(_NEXT)


def _refuse(used: set[str], names: Sequence[str], where: str) -> None:
    for name in names:
        if name in used:
            shown = "SOURCE" if name == "source" else f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{shown} can only be used {where}.")


def _say(step: str) -> None:
    click.echo(step, err=True)
