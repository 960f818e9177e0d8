"""The options of `export` as a recipe, prompts and class names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fedclip_edge.exporting.recipe import Recipe


def recipe_of(given: Mapping[str, Any], used: set[str]) -> Recipe:
    """Make the recipe of SOURCE, with its values replaced by those of the command line.

    Raises ConfigError for a recipe that cannot be read and for values that do not fit together.
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
    if prompts := prompts_of(given):
        changes["prompts"] = prompts
    try:
        return dataclasses.replace(recipe, **changes)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


def tiny_recipe(folder: Path) -> Recipe | None:
    """Return the demo's model, which is part of this package, if the bundle was made from it."""
    from fedclip_edge.demo import tiny_clip
    from fedclip_edge.exporting.recipe import Recipe, in_folder
    from fedclip_edge.vision.bundle import read_bundle

    manifest = read_bundle(folder).manifest
    its = (manifest.model, manifest.pretrained) == (tiny_clip.FOLDER.name, "local-dir")
    return Recipe(in_folder(tiny_clip.FOLDER)) if its else None


def prompts_of(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The prompts that the command line gives; empty if it gives none."""
    if given["prompts"] is None:
        return () if given["prompt"] is None else (given["prompt"],)
    if given["prompt"] is not None:
        raise click.UsageError("Give --prompt or --prompts, not both.")
    from fedclip_edge.exporting.inputs import read_prompts

    return read_prompts(given["prompts"])


def class_names(path: Path | None) -> tuple[str, ...]:
    """The names in the file of --classes; without one, those of the demo."""
    if path is None:
        from fedclip_edge.demo import world

        return world.CLASSES
    from fedclip_edge.exporting.inputs import read_class_names

    return read_class_names(path)
