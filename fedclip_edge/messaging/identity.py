"""Ed25519 keys: who said it.

Without enrolment each party makes its key on first start, and its peers trust the first key they
see for the length of one run. That stops a forged or altered message, not an impostor who was
there first: it is meant for a loopback broker or one that checks certificates.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedclip_edge.errors import ConfigError

_KEY_BYTES = 32  # Ed25519, RFC 8032


@dataclass(frozen=True)
class Identity:
    """One party's signing key."""

    _private: Ed25519PrivateKey

    @property
    def key(self) -> str:
        """The public key, 64 hex digits."""
        return self._private.public_key().public_bytes_raw().hex()

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature."""
        return self._private.sign(message)


def new() -> Identity:
    """An identity that no file remembers."""
    return Identity(Ed25519PrivateKey.generate())


def load_or_create(path: Path) -> Identity:
    """The identity kept in `path` (32 raw bytes, readable by its owner alone), made if missing.

    Raises ConfigError where the file is no key or cannot be written.
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_private(path, Ed25519PrivateKey.generate().private_bytes_raw())
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the key file {path} cannot be used: {error.strerror}; check its folder's permissions"
        ) from error
    if len(raw) != _KEY_BYTES:
        raise ConfigError(
            f"{path} is not a key ({len(raw)} bytes, expected {_KEY_BYTES}); "
            "restore it, or delete it to get a new one"
        )
    return Identity(Ed25519PrivateKey.from_private_bytes(raw))


def verifies(key: str, message: bytes, signature: bytes) -> bool:
    """Whether `signature` over `message` was made with the private half of `key` (hex)."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _write_private(path: Path, raw: bytes) -> None:
    partial = path.with_suffix(".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(raw)
        os.fsync(file.fileno())
    partial.rename(path)
