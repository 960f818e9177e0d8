"""Other classes for a bundle that is there: its encoder, and with it every cache, stays."""

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
    """Texts for `classes` by the text tower of the model that the bundle was made of.

    `source` says where that model is; by default open_clip's name and tag in the manifest.
    `prompts` are by default those of the bundle. Raises ConfigError where the model cannot be
    found by the manifest alone or has other weights, ExportError where it cannot be had; the
    bundle is as it was then.
    """
    bundle = read_bundle(folder)
    source = source or _source(bundle)
    from fedclip_edge.exporting.open_clip_model import load_open_clip
    from fedclip_edge.exporting.texts import class_texts, prompts_of

    wanted = prompts or prompts_of(bundle.classes)
    if wanted == ("unknown",):
        raise ConfigError(
            f"nobody knows the prompt of the classes in {folder}; give it with --prompt"
        )
    model = load_open_clip(source)
    if model.weights_sha256 != bundle.manifest.weights_sha256:
        raise ConfigError(
            f"{source.model} has other weights than the model {folder} was made of "
            f"({bundle.manifest.model}, {bundle.manifest.pretrained}); name that one"
        )
    return replace_classes(bundle, class_texts(model, classes, wanted, progress))


def from_vectors(folder: Path, class_texts: Path, classes: Path) -> Bundle:
    """Unit text vectors [C, D] from a `.npy`, for the names in the file `classes`.

    Raises ConfigError, naming the file, for one that is missing or does not fit.
    """
    bundle = read_bundle(folder)
    texts = read_class_texts(class_texts, classes, bundle.classes.logit_scale, "unknown")
    return replace_classes(bundle, texts)


def _source(bundle: Bundle) -> Source:
    manifest = bundle.manifest
    if manifest.pretrained == "unknown":
        raise ConfigError(
            f"{bundle.folder} holds an encoder whose text tower is not known here; give the new "
            "classes' vectors with --class-texts FILE.npy"
        )
    if manifest.pretrained in ("file", "local-dir"):
        named = "--pretrained FILE" if manifest.pretrained == "file" else "local-dir:FOLDER"
        raise ConfigError(
            f"{bundle.folder} was made of {manifest.model} with weights of your own, and a bundle "
            f"keeps no text tower; name them again: SOURCE, and {named} as at its export"
        )
    if manifest.pretrained == RANDOM:
        return Source(manifest.model, random_weights=True)
    return Source(manifest.model, manifest.pretrained)
