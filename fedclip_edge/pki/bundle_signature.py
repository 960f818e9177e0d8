"""The signature of a bundle by the fleet's export key, kept in the bundle as signature.json.

The export key is on the machine that exports, not on the coordinator's. Each box knows its public
half from enrolment. So a coordinator cannot give the boxes another encoder or other class texts.

Laws:
- The signature covers the manifest, which holds the SHA-256 of every other file, the size of every
  file, and a serial number. It is valid for exactly one content.
- Serial numbers grow: a bundle that is signed again gets a larger one, also if the clock is wrong.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedclip_edge.decoding import DecodeError, decode_table
from fedclip_edge.errors import BundleError, ConfigError, DiskError
from fedclip_edge.protocol import signing
from fedclip_edge.protocol.signing import Identity, verifies
from fedclip_edge.records import check_sha256
from fedclip_edge.storage import atomic
from fedclip_edge.storage.text_file import parse_json
from fedclip_edge.vision.bundle import read_bundle
from fedclip_edge.vision.manifest import FILES, MANIFEST

SIGNATURE = "signature.json"
_MAX_SERIAL = 2**53  # exact in every JSON reader
_PURPOSE = b"fedclip-edge bundle\0"  # no other message that a key signs begins with it
_SIGN_IT = "sign it with `fedclip-edge bundle sign`"


@dataclass(frozen=True)
class Signature:
    """A signature, which is valid once `check` passed."""

    manifest: str  # SHA-256 of manifest.json
    sizes: Mapping[str, int]  # of the other files, in bytes
    serial: int
    key: str  # public key of the signer, 64 hex digits
    signature: str = ""  # 128 hex digits

    def __post_init__(self) -> None:
        check_sha256(self.manifest, "manifest")
        check_sha256(self.key, "key")
        if not 1 <= self.serial <= _MAX_SERIAL:
            raise ValueError(f"serial: expected 1 to {_MAX_SERIAL}, got {self.serial}")
        if sorted(self.sizes) != sorted(FILES) or min(self.sizes.values()) < 1:
            raise ValueError(f"sizes: expected the sizes of {', '.join(FILES)}")

    @property
    def statement(self) -> bytes:
        """The bytes that are signed."""
        said = {name: value for name, value in asdict(self).items() if name != "signature"}
        return _PURPOSE + json.dumps(said, sort_keys=True, separators=(",", ":")).encode()

    def check(self, manifest: bytes, where: str) -> None:
        """Raise BundleError unless this signs the manifest.json with these bytes."""
        if hashlib.sha256(manifest).hexdigest() != self.manifest:
            raise BundleError(
                f"{where} signs another {MANIFEST}; {_SIGN_IT}, or copy the bundle again"
            )
        try:
            raw = bytes.fromhex(self.signature)
        except ValueError:
            raw = b""
        if not verifies(self.key, self.statement, raw):
            raise BundleError(
                f"{where} is not a valid signature of the key {self.key[:16]}; {_SIGN_IT}, or copy "
                "the bundle again"
            )

    def check_signer(self, key: str, where: str) -> None:
        """Raise BundleError unless the export key `key` (64 hex digits) made this signature."""
        if self.key != key:
            raise BundleError(
                f"{where} is signed with the key {self.key[:16]}, not with the fleet's export key "
                f"{key[:16]}; sign it with export/export.key of the folder that `fedclip-edge "
                "broker init` made"
            )


def pack(signature: Signature) -> bytes:
    """The content of signature.json."""
    return (json.dumps(asdict(signature), indent=1) + "\n").encode()


def unpack(text: str, where: str) -> Signature:
    """The signature in the text of a signature.json; it is not checked yet.

    Raises BundleError, which starts with `where`, if it is damaged.
    """
    try:
        table: Any = parse_json(text, where)
        if not isinstance(table, dict):
            raise BundleError(f"{where} is not the signature of a bundle; {_SIGN_IT}")
        return decode_table(Signature, table, where)
    except (ConfigError, DecodeError) as error:
        raise BundleError(f"{error}; {_SIGN_IT}") from None


def read_signature(folder: Path) -> Signature | None:
    """The checked signature of the bundle in `folder`; None if it has none.

    Raises BundleError if the signature is damaged, or belongs to another content.
    """
    path = folder / SIGNATURE
    try:
        text = path.read_text(encoding="utf-8")
        manifest = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read: {error}; {_SIGN_IT}") from error
    found = unpack(text, str(path))
    found.check(manifest, str(path))
    return found


def load_export_key(path: Path) -> Identity:
    """The export key in a PEM file; raises ConfigError if it cannot be read or is no such key."""
    return signing.load(
        path, "name the file export/export.key that `fedclip-edge broker init` made"
    )


def serial_in(folder: Path) -> int:
    """The serial number of the bundle in `folder`; 0 if it has no valid signature."""
    try:
        found = read_signature(folder)
    except BundleError:
        return 0
    return 0 if found is None else found.serial


def sign_bundle(
    folder: Path, exporter: Identity, *, above: int = 0, serial: int | None = None
) -> Signature:
    """Sign the bundle in `folder`, and write the signature into it.

    The serial number is the present time in seconds, but larger than `above` and than that of the
    signature that the bundle has; or `serial`, if that is given.

    Raises BundleError if the bundle is missing or damaged; ConfigError if `serial` is out of range;
    DiskError if the signature cannot be written.
    """
    read_bundle(folder)
    sizes = {name: (folder / name).stat().st_size for name in FILES}
    if serial is None:
        serial = max(int(time.time()), above + 1, serial_in(folder) + 1)
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    try:
        made = Signature(digest, sizes, serial, exporter.key)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    made = replace(made, signature=exporter.sign(made.statement).hex())
    try:
        atomic.write_file(folder / SIGNATURE, pack(made))
    except OSError as error:
        raise DiskError(
            f"{folder / SIGNATURE} cannot be written: {error.strerror or error}; free disk space, "
            "or let this user write to the folder"
        ) from error
    return made
