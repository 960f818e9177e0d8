"""The description of a bundle that travels first: its manifest and its signature, as they are.

The files follow, each as a blob of its own kind. A box fetches only the files that it does not have
already: with new classes it fetches their texts and not the encoder.

Laws:
- A description is accepted only if the fleet's export key signed it.
- No file is larger than its kind allows; this is checked before any of it is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedclip_edge.errors import BundleError
from fedclip_edge.pki import bundle_signature
from fedclip_edge.pki.bundle_signature import SIGNATURE, Signature
from fedclip_edge.protocol.message_parts import MAX_CHUNKS, Blob, BlobKind
from fedclip_edge.vision.manifest import CLASSES, ENCODER, GOLDEN, MANIFEST, Manifest, read_manifest

KINDS: Mapping[str, BlobKind] = {ENCODER: "encoder", CLASSES: "classes", GOLDEN: "golden"}
# The largest payload of each kind. ONNX files end at 2 GiB, because protobuf does. The texts of
# 20,000 classes of width 1,024 take 80 MiB, and a few golden pictures of 448 pixels 20 MiB.
MAX_BYTES: Mapping[BlobKind, int] = {
    "bundle": 2 * 2**20,
    "encoder": 2**31,
    "classes": 2**28,
    "golden": 2**26,
}
_WHERE = "the coordinator's bundle"


@dataclass(frozen=True, eq=False)
class Description:
    """A checked description: what the manifest says, and the content of the two small files."""

    manifest: Manifest
    signature: Signature
    texts: Mapping[str, bytes]  # manifest.json and signature.json

    def blobs(self, chunk_bytes: int) -> dict[str, Blob]:
        """The blob of each large file, by its name, in chunks of at least `chunk_bytes`."""
        made = {}
        for name, kind in KINDS.items():
            size_bytes = self.signature.sizes[name]
            least = -(-size_bytes // MAX_CHUNKS)
            sha256 = str(self.manifest.files[name])
            made[name] = Blob(sha256, size_bytes, kind, max(chunk_bytes, least))
        return made


def describe(folder: Path) -> bytes:
    """The payload that describes the bundle in `folder`, which is signed."""
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in (MANIFEST, SIGNATURE)}
    return json.dumps(texts).encode()


def read_description(payload: bytes, export_key: str) -> Description:
    """The description in a payload, checked: signed by `export_key`, and no file is too large.

    Raises BundleError, which says what is wrong with it.
    """
    try:
        texts = json.loads(payload)
        manifest, signature = (texts[name] for name in (MANIFEST, SIGNATURE))
        contents = {name: texts[name].encode() for name in (MANIFEST, SIGNATURE)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{_WHERE} has no valid description ({error})") from None
    signed = bundle_signature.unpack(signature, f"{_WHERE}: {SIGNATURE}")
    signed.check_signer(export_key, _WHERE)
    signed.check(contents[MANIFEST], f"{_WHERE}: {SIGNATURE}")
    for name, kind in KINDS.items():
        if signed.sizes[name] > MAX_BYTES[kind]:
            raise BundleError(
                f"{_WHERE}: {name} has {signed.sizes[name]} bytes, limit {MAX_BYTES[kind]}"
            )
    return Description(read_manifest(manifest, f"{_WHERE}: {MANIFEST}"), signed, contents)
