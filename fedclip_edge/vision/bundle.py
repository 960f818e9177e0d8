"""An exported encoder on disk: manifest, checksums, class texts and golden vectors.

A bundle is a folder of four files:

    manifest.json        describes the encoder; holds the SHA-256 of the other three files
    image_encoder.onnx   `pixel_values` float32 (N, 3, S, S) -> `image_features` float32 (N, D), raw
    classes.safetensors  `vectors` float32 (C, D), unit rows; names, prompt and logit scale
    golden.safetensors   `pixels` float32 (n, 3, S, S) and their raw `features` float32 (n, D)

Here n is the number of golden pictures. Reading a bundle needs only numpy and safetensors.

Laws:

- `read_bundle` returns only complete, unaltered bundles.
- A bundle folder gets its final name only when it is complete (storage/atomic.py).
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import BundleError, ConfigError, DiskError
from fedclip_edge.records import F32, ClassTexts
from fedclip_edge.storage import atomic
from fedclip_edge.vision.class_texts import pack_classes, read_classes
from fedclip_edge.vision.manifest import (
    AGAIN,
    CLASSES,
    ENCODER,
    FILES,
    GOLDEN,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Manifest,
    feature_key,
    read_manifest,
)

__all__ = [
    "ENCODER",
    "Bundle",
    "Golden",
    "Manifest",
    "check_free",
    "feature_key",
    "key_of",
    "read_bundle",
    "replace_classes",
    "write_bundle",
]


@dataclass(frozen=True, eq=False)
class Golden:
    """A few inputs and the encoder's outputs for them, to check the encoder on another box."""

    pixels: F32  # (n, 3, S, S)
    features: F32  # (n, D), raw


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle whose files are all present, unaltered and consistent with each other."""

    folder: Path
    manifest: Manifest
    classes: ClassTexts

    @property
    def encoder_path(self) -> Path:
        """Path of the ONNX file."""
        return self.folder / ENCODER

    def golden(self) -> Golden:
        """Read the golden vectors: pixels float32 (n, 3, S, S), raw features float32 (n, D)."""
        arrays = load_file(self.folder / GOLDEN)
        return Golden(arrays["pixels"], arrays["features"])


def read_bundle(folder: Path, *, reads_encoder: bool = True) -> Bundle:
    """Read the bundle in `folder` and verify it.

    Without `reads_encoder`, the encoder's file, which is large, is not looked at.

    Raises BundleError, which names the file and the next step, if a file is missing, unreadable or
    altered, or if classes, golden vectors and manifest do not fit together.
    """
    manifest = _read_manifest(folder)
    for name in FILES:
        if name == ENCODER and not reads_encoder:
            continue
        if _file_sha256(folder, name) != manifest.files[name]:
            raise BundleError(
                f"{folder / name} is not the file that {MANIFEST} describes "
                f"(its SHA-256 differs); {AGAIN}"
            )
    bundle = Bundle(folder, manifest, read_classes(folder / CLASSES))
    width = bundle.classes.vectors.shape[1]
    if width != manifest.dim:
        raise BundleError(
            f"{folder / CLASSES} has text vectors of width {width}, but the encoder's features "
            f"have width {manifest.dim}; export the classes with the same model"
        )
    _check_golden(folder / GOLDEN, manifest)
    return bundle


def check_free(folder: Path, *, replace_existing: bool = False) -> None:
    """Raise ConfigError unless a bundle may be written as `folder`, DiskError without permission.

    With `replace_existing`, an existing bundle may be replaced; any other file or folder may not.
    """
    if folder.exists() or folder.is_symlink():
        if folder.is_symlink() or not (folder / MANIFEST).is_file():
            raise ConfigError(f"{folder} already exists and is not a bundle; name another folder")
        if not replace_existing:
            raise ConfigError(
                f"{folder} is already a bundle; name another folder, or add --replace"
            )
    above = folder.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise ConfigError(f"{folder} cannot be written: {above} is a file; name another folder")
    if not os.access(above, os.W_OK):
        raise DiskError(
            f"{folder} cannot be written: no permission in {above}; name another folder"
        )


def write_bundle(
    folder: Path,
    manifest: Manifest,
    encoder: bytes,
    classes: ClassTexts,
    golden: Golden,
    *,
    replace_existing: bool = False,
) -> Bundle:
    """Write the four files as `folder` and read them back.

    `encoder` is the content of the ONNX file. The checksums in `manifest.files` are computed here.
    After a failure or an interrupt, no file is left behind.

    Raises ConfigError if `folder` exists and may not be replaced; DiskError if the files cannot be
    written; BundleError if they do not fit together.
    """
    check_free(folder, replace_existing=replace_existing)
    contents = {
        ENCODER: encoder,
        CLASSES: pack_classes(classes),
        GOLDEN: save({"features": golden.features, "pixels": golden.pixels}),
    }
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    whole = replace(manifest, files=digests)
    contents[MANIFEST] = (json.dumps(whole.to_json(), indent=2) + "\n").encode()
    try:
        atomic.write_folder(folder, contents, check=read_bundle)
    except OSError as error:
        raise DiskError(
            f"{folder} cannot be written: {error.strerror or error}; no file was left behind. Free "
            "disk space, or name another folder"
        ) from error
    return Bundle(folder, whole, classes)


def replace_classes(bundle: Bundle, classes: ClassTexts) -> Bundle:
    """Write the bundle again with other classes; encoder, golden vectors and id do not change.

    `classes.vectors` must have the width D of the features. Otherwise raises ConfigError, in
    addition to the errors of `write_bundle`. After an error, the bundle on disk is unchanged.
    """
    if classes.vectors.shape[1] != bundle.manifest.dim:
        raise ConfigError(
            f"the text vectors have width {classes.vectors.shape[1]}, but the features of "
            f"{bundle.folder} have width {bundle.manifest.dim}; use the model that the bundle was "
            "exported from"
        )
    parity = bundle.manifest.parity
    if parity is not None:  # its zero-shot figures belong to the old classes
        parity = {name: value for name, value in parity.items() if not name.startswith("zero_shot")}
    return write_bundle(
        bundle.folder,
        replace(bundle.manifest, parity=parity),
        bundle.encoder_path.read_bytes(),
        classes,
        bundle.golden(),
        replace_existing=True,
    )


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        what = "has no manifest.json" if folder.is_dir() else "is not a folder"
        raise BundleError(f"{folder} {what}; name the folder that `export` wrote") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    return read_manifest(data, str(path))


def _file_sha256(folder: Path, name: str) -> str:
    digest = hashlib.sha256()
    try:
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 20):  # an encoder can be larger than a box's free memory
                digest.update(block)
    except FileNotFoundError:
        raise BundleError(f"{folder / name} is missing; {AGAIN}") from None
    except OSError as error:
        raise BundleError(f"{folder / name} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def _check_golden(path: Path, manifest: Manifest) -> None:
    side = manifest.preprocessing.image_size
    try:
        with safe_open(path, framework="np") as file:
            slices = file.get_slice("pixels"), file.get_slice("features")
            pixels, features = (tuple(found.get_shape()) for found in slices)
            kinds = {str(found.get_dtype()) for found in slices}
    except SafetensorError as error:
        raise BundleError(f"{path} has no valid golden vectors ({error}); {AGAIN}") from error
    count = pixels[:1]
    fits = pixels == (*count, 3, side, side) and features == (*count, manifest.dim)
    if not any(count) or not fits or kinds != {"F32"}:
        raise BundleError(
            f"{path} has pixels {list(pixels)} and features {list(features)} in "
            f"{' and '.join(sorted(kinds))}, but this encoder's are [n, 3, {side}, {side}] and "
            f"[n, {manifest.dim}] in F32; {AGAIN}"
        )


def key_of(bundle: Bundle, config: EncoderConfig) -> str:
    """Feature key of the bundle's encoder when it runs with the settings of `config`."""
    manifest = bundle.manifest
    sha256 = str(manifest.files[ENCODER])
    return feature_key(
        manifest.encoder_id, sha256, manifest.precision, config.label, fast=config.fast
    )
