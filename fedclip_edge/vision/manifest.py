"""The manifest of a bundle, and the two identities derived from it.

`encoder_id` decides which devices' features may be used together; `feature_key` decides which
cached features are still valid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fedclip_edge.decoding import DecodeError, decode_table
from fedclip_edge.errors import BundleError
from fedclip_edge.records import Scalar, check_sha256
from fedclip_edge.vision.pictures import Preprocessing

SCHEMA = 1
MANIFEST = "manifest.json"
ENCODER = "image_encoder.onnx"
CLASSES = "classes.safetensors"
GOLDEN = "golden.safetensors"
FILES = (ENCODER, CLASSES, GOLDEN)

MAX_MANIFEST_BYTES = 1 << 20  # a few kilobytes in practice

RANDOM = "random"  # the value of `pretrained` for random weights

AGAIN = "copy the bundle again, or export it again"  # the end of messages about a bad bundle


@dataclass(frozen=True)
class Manifest:
    """Description of an encoder; a text field is "unknown" if its value is not known."""

    model: str
    pretrained: str  # open_clip's tag, "file", "local-dir", or RANDOM
    weights_sha256: str  # of the image tower's weights; for an external encoder, of its ONNX file
    dim: int  # D
    preprocessing: Preprocessing
    activation: str  # in the image tower: gelu, quick_gelu, relu
    precision: str  # fp32, fp16, int8, int8-weights; an external encoder may say "unknown"
    opset: int
    parity: Mapping[str, Scalar] | None = None  # exporting/parity.py; None if not compared
    quantisation: Mapping[str, Scalar] = field(default_factory=dict)  # how int8 was made
    made_with: Mapping[str, Scalar] = field(default_factory=dict)  # versions of the exporter
    files: Mapping[str, Scalar] = field(default_factory=dict)  # name -> SHA-256

    def __post_init__(self) -> None:
        check_sha256(self.weights_sha256, "weights_sha256")
        if not 1 <= self.dim <= 65536:
            raise ValueError(f"dim: expected 1 to 65536, got {self.dim}")
        for name, digest in self.files.items():
            check_sha256(str(digest), f"files: {name}")

    @property
    def encoder_id(self) -> str:
        """SHA-256 of weights, activation and preprocessing, in 64 hex digits.

        Features of two devices may be used together only if their encoder ids are equal. The
        activation is part of it, because the same weights also run with another activation, whose
        features look plausible but are wrong. The classes are not part of it.
        """
        return _digest(
            {
                "weights": self.weights_sha256,
                "activation": self.activation,
                "preprocessing": self.preprocessing.to_json(),
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of manifest.json; `manifest_from_json` reads it back."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            "schema": SCHEMA,
            "encoder_id": self.encoder_id,
            **own,
            "preprocessing": self.preprocessing.to_json(),
            "parity": "unknown" if self.parity is None else dict(self.parity),
            "made_with": dict(self.made_with),
            "files": dict(self.files),
        }


def feature_key(
    encoder_id: str, onnx_sha256: str, precision: str, provider: str, *, fast: bool = False
) -> str:
    """SHA-256, in 64 hex digits, of everything that decides a feature's bits except the picture.

    `precision` is that of the file, and `provider` is EncoderConfig.label, which also names the
    numbers it computes with. `fast` is true if JPEGs are decoded at a lower
    resolution. The feature cache uses the result as a key.
    """
    decoding = ["fast"] if fast else []
    return _digest([encoder_id, onnx_sha256, precision, provider, *decoding])


def read_manifest(data: bytes | str, where: str) -> Manifest:
    """The manifest in the content of a manifest.json.

    Raises BundleError, whose message starts with `where`, if it is larger than MAX_MANIFEST_BYTES
    or not JSON, and as `manifest_from_json` does.
    """
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is incomplete or not JSON; {AGAIN}") from error
    if len(data) > MAX_MANIFEST_BYTES or not isinstance(table, dict):
        raise BundleError(f"{where} is not the manifest of a bundle; {AGAIN}")
    return manifest_from_json(table, where)


def manifest_from_json(table: Mapping[str, Any], where: str) -> Manifest:
    """Check a JSON object and return its manifest.

    Raises BundleError, whose message starts with `where`, for another schema, an unknown, missing
    or wrong value, an incomplete list of files, and an encoder_id that does not match.
    """
    values = dict(table)
    schema = values.pop("schema", None)
    if schema != SCHEMA:
        raise BundleError(
            f"{where} has schema {schema!r}, but this version reads schema {SCHEMA}; "
            "export the bundle again with this version"
        )
    claimed = values.pop("encoder_id", None)
    if values.get("parity") == "unknown":
        del values["parity"]
    try:
        manifest = decode_table(Manifest, values, where)
    except DecodeError as error:
        raise BundleError(f"{error}; {AGAIN}") from error
    if sorted(manifest.files) != sorted(FILES):
        raise BundleError(f"{where}: files: expected {', '.join(FILES)}; {AGAIN}")
    if claimed != manifest.encoder_id:
        raise BundleError(
            f"{where}: encoder_id does not match the weights, activation and preprocessing; {AGAIN}"
        )
    return manifest


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
