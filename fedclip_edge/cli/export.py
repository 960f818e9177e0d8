"""`fedclip-edge export`: an encoder and class texts as a bundle, the folder that a fleet shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedclip_edge.cli.export_screens import report, shortened, summary
from fedclip_edge.cli.progress import progress_bar

if TYPE_CHECKING:
    from fedclip_edge.exporting.recipe import Recipe
    from fedclip_edge.vision.bundle import Bundle

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_FOREIGN = ("onnx", "preprocess", "class_texts", "classes")


@click.command()
@click.argument("source", required=False)
@click.option("--out", type=_FOLDER, help="The folder to write; it must not exist yet.")
@click.option("--classes", type=_FILE, help="Class names: a .json list, or a .txt with one a line.")
@click.option("--pretrained", metavar="TAG|FILE", help="open_clip's tag, or a file of weights.")
@click.option("--like", metavar="TAG", help="The tag that a file of weights was tuned from.")
@click.option("--random-weights", is_flag=True, help="For tests and timings; means nothing.")
@click.option("--prompt", metavar="TEXT", help="Text with {} where the class name goes.")
@click.option("--prompts", type=_FILE, help="Several, averaged: a .json list, or a .txt.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8", "int8-weights"]),
    help="Of the encoder; fp32 unless the recipe says otherwise.",
)
@click.option(
    "--calibration",
    type=_FOLDER,
    help="Pictures like the fleet's: the encoder is judged on them, and int8 set by them.",
)
@click.option("--accept-parity", is_flag=True, help="Write a bundle that the gate refuses.")
@click.option(
    "--replace", is_flag=True, help="Replace a bundle that is there, with all in its folder."
)
@click.option("--bundle", type=_FOLDER, help="Give this bundle other --classes, nothing else.")
@click.option("--onnx", type=_FILE, help="Somebody's own encoder, in place of SOURCE.")
@click.option("--preprocess", type=_FILE, help="How that encoder wants its pictures, in TOML.")
@click.option("--class-texts", type=_FILE, help="Its unit text vectors [C, D], a .npy.")
def export(**given: Any) -> None:
    """Export an image encoder and class texts to a bundle.

    SOURCE is a recipe (a .toml file, as in export/), a model of open_clip's, a folder that
    open_clip saved (local-dir:FOLDER), or tiny, the model of the demo. The features are compared
    with PyTorch's, and a bundle that differs is not written.

    \b
    fedclip-edge export export/vit-b-32.toml --classes classes.txt --out bundle
    fedclip-edge export ViT-B-16 --pretrained laion2b_s34b_b88k \\
        --classes classes.txt --precision fp16 --out bundle
    fedclip-edge export tiny --out bundle

    An encoder that is an ONNX file already needs no SOURCE:

    \b
    fedclip-edge export --onnx encoder.onnx --preprocess preprocess.toml \\
        --class-texts class_texts.npy --classes classes.json --out bundle

    Other classes for a bundle, whose encoder and cached features stay:

    \b
    fedclip-edge export --bundle bundle --classes new.txt
    """  # noqa: D301 - click needs the backspace character
    used = {name for name, value in given.items() if value not in (None, False)}
    if "bundle" in used:
        _replace_classes(given, used)
        return
    if "out" not in used:
        raise click.UsageError("Name the folder to write: --out FOLDER.")
    bundle = _from_onnx(given, used) if "source" not in used else _from_open_clip(given, used)
    click.echo(summary(bundle))


def _from_open_clip(given: Mapping[str, Any], used: set[str]) -> Bundle:
    _refuse(used, ("onnx", "preprocess", "class_texts"), "without SOURCE")
    recipe = _recipe(given, used)
    if "classes" not in used and given["source"] != "tiny":
        raise click.UsageError(f"{given['source']} needs --classes FILE, one class name a line.")
    names = _class_names(given["classes"])
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
        raise click.UsageError("Name a SOURCE (a recipe, a model, tiny), or give --onnx.")
    if missing:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise click.UsageError(f"An encoder of your own also needs {options}.")
    _refuse(used, ("pretrained", "like", "random_weights"), "with SOURCE")
    _refuse(used, ("prompt", "prompts"), "with SOURCE; write prompt in the TOML file")
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
    """The arguments that both exports take: for the gate, for an existing folder, for output."""
    from fedclip_edge.demo.gate_pictures import draw

    return {
        "calibration": given["calibration"],
        "draw": draw,
        "accept_parity": given["accept_parity"],
        "replace_existing": given["replace"],
        "say": _say,
        "report": report,
    }


def _replace_classes(given: Mapping[str, Any], used: set[str]) -> None:
    _refuse(used, ("precision", "calibration", "accept_parity", "replace"), "without --bundle")
    _refuse(used, ("onnx", "preprocess"), "without --bundle")
    _refuse(used, ("out",), "without --bundle, which is changed in place; copy it first")
    if "classes" not in used:
        raise click.UsageError("--bundle needs --classes FILE, the new names.")
    from fedclip_edge.exporting import replace_classes

    if "class_texts" in used:
        _refuse(used, ("source", "pretrained", "like", "random_weights"), "without --class-texts")
        _refuse(used, ("prompt", "prompts"), "without --class-texts")
        bundle = replace_classes.from_vectors(
            given["bundle"], given["class_texts"], given["classes"]
        )
    else:
        if "source" not in used:
            _refuse(used, ("pretrained", "like", "random_weights"), "with SOURCE")
        names, prompts = _class_names(given["classes"]), _prompts(given)
        source = _recipe(given, used) if "source" in used else _tiny(given["bundle"])
        if source is not None and str(given["source"]).endswith(".toml"):
            prompts = source.prompts  # only a recipe file has prompts of its own
        with progress_bar("texts") as progress:
            bundle = replace_classes.from_model(
                given["bundle"], names, source=source, prompts=prompts, progress=progress
            )
    click.echo(
        f"Changed the classes of {bundle.folder} to {len(bundle.classes.names)}: "
        f"{shortened(bundle.classes.names)}\n\n"
        "The encoder, its identity and every cached feature stay. Next: copy the bundle to every\n"
        "box and start a new run; a model trained with other classes does not fit these."
    )


def _tiny(folder: Path) -> Recipe | None:
    """The demo's model if the bundle was made from it: its text tower is always installed."""
    from fedclip_edge.demo import tiny_clip
    from fedclip_edge.exporting.recipe import Recipe, in_folder
    from fedclip_edge.vision.bundle import read_bundle

    manifest = read_bundle(folder).manifest
    its = (manifest.model, manifest.pretrained) == (tiny_clip.FOLDER.name, "local-dir")
    return Recipe(in_folder(tiny_clip.FOLDER)) if its else None


def _recipe(given: Mapping[str, Any], used: set[str]) -> Recipe:
    """SOURCE as a recipe, with its values replaced by those of the command line.

    Raises ConfigError for a recipe that cannot be read or values that do not go together.
    """
    from fedclip_edge.demo import tiny_clip
    from fedclip_edge.errors import ConfigError
    from fedclip_edge.exporting.recipe import Recipe, in_folder, read_recipe

    source = given["source"]
    if source.endswith(".toml"):
        recipe = read_recipe(Path(source))
    else:
        recipe = Recipe(in_folder(tiny_clip.FOLDER) if source == "tiny" else source)
    changes: dict[str, Any] = {
        name: given[name]
        for name in ("pretrained", "like", "random_weights", "precision")
        if name in used
    }
    if "random_weights" in used and "pretrained" not in used:
        changes["pretrained"] = ""  # random weights replace the recipe's own
    if prompts := _prompts(given):
        changes["prompts"] = prompts
    try:
        return dataclasses.replace(recipe, **changes)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


def _prompts(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The prompts that the command line gives; empty if it gives none."""
    if given["prompts"] is None:
        return () if given["prompt"] is None else (given["prompt"],)
    if given["prompt"] is not None:
        raise click.UsageError("Give --prompt or --prompts, not both.")
    from fedclip_edge.exporting.inputs import read_prompts

    return read_prompts(given["prompts"])


def _class_names(path: Path | None) -> tuple[str, ...]:
    if path is None:
        from fedclip_edge.demo import world

        return world.CLASSES
    from fedclip_edge.exporting.inputs import read_class_names

    return read_class_names(path)


def _refuse(used: set[str], names: Sequence[str], where: str) -> None:
    for name in names:
        if name in used:
            shown = "SOURCE" if name == "source" else f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{shown} goes {where}.")


def _say(step: str) -> None:
    click.echo(step, err=True)
