"""New classes for an existing bundle. Its encoder is unchanged, so cached features stay valid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting.inputs import read_class_texts
from fedclip_edge.exporting.recipe import Source
from fedclip_edge.vision.bundle import Bundle, read_bundle, replace_classes
from fedclip_edge.vision.manifest import RANDOM


def from_model(
    folder: Path,
    classes: Sequence[str],
    *,
    source: Source | None = None,
    prompts: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Bundle:
    """Give the bundle in `folder` new classes, encoded by the text tower of its own model.

    `source` names that model; by default it is open_clip's name and tag in the manifest.
    `prompts` are by default those of the bundle. `progress` is called with (done, total) texts.

    Raises BundleError if the bundle is missing or damaged; ConfigError if the bundle names no model
    or no prompt, if the model has other weights than the bundle's, or if a class or a prompt is
    wrong; ExportError if the model cannot be loaded; DiskError if the bundle cannot be written. The
    bundle is unchanged after an error.
    """
    bundle = read_bundle(folder)
    source = source or _source(bundle)
    from fedclip_edge.exporting.open_clip_model import load_open_clip
    from fedclip_edge.exporting.texts import class_texts, prompts_of

    wanted = prompts or prompts_of(bundle.classes)
    if wanted == ("unknown",):
        raise ConfigError(
            f"{folder} does not record the prompt of its classes; give it with --prompt"
        )
    model = load_open_clip(source)
    if model.weights_sha256 != bundle.manifest.weights_sha256:
        raise ConfigError(
            f"{source.model} has other weights than the model that {folder} was exported from "
            f"({bundle.manifest.model}, {bundle.manifest.pretrained}); name that model"
        )
    return replace_classes(bundle, class_texts(model, classes, wanted, progress))


def from_vectors(folder: Path, class_texts: Path, classes: Path) -> Bundle:
    """Give the bundle in `folder` new classes from the files of vectors and of names.

    `class_texts` is a `.npy` of unit vectors (C, D), in the order of the C names in `classes`.
    Raises BundleError if the bundle is missing or damaged; ConfigError, naming the file, if a file
    is missing or wrong or does not fit the bundle; DiskError if the bundle cannot be written. The
    bundle is unchanged after an error.
    """
    bundle = read_bundle(folder)
    texts = read_class_texts(class_texts, classes, bundle.classes.logit_scale, "unknown")
    return replace_classes(bundle, texts)


def _source(bundle: Bundle) -> Source:
    manifest = bundle.manifest
    if manifest.pretrained == "unknown":
        raise ConfigError(
            f"{bundle.folder} does not record the text tower of its encoder; give the vectors of "
            "the new classes with --class-texts FILE.npy"
        )
    if manifest.pretrained in ("file", "local-dir"):
        named = "SOURCE --pretrained FILE" if manifest.pretrained == "file" else "local-dir:FOLDER"
        raise ConfigError(
            f"{bundle.folder} was exported from {manifest.model} with your own weights, and a "
            "bundle does not contain the text tower; name the weights as for the export: "
            f"{named}"
        )
    if manifest.pretrained == RANDOM:
        return Source(manifest.model, random_weights=True)
    return Source(manifest.model, manifest.pretrained)
