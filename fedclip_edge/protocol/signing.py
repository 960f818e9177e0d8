"""Ed25519 keys (RFC 8032), and the signatures on messages made with them.

An enrolled party signs with the key of its certificate (authority.py), and its peers accept only
that key. The one key signs both TLS handshakes and messages: TLS 1.3 signs content that begins with
64 spaces and a message begins with its topic, so neither signature can pass for the other.

Without enrolment each party makes its key on first start, and its peers trust the first key they
see, for one run. This detects forged and altered messages, but not an impostor whose
key is seen first, so it is meant for a loopback broker only.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedclip_edge.errors import ConfigError, DiskError
from fedclip_edge.storage import atomic

_KEY_BYTES = 32  # Ed25519, RFC 8032
_USE_ENROLMENT = "set 'key' under [broker] to the key of the enrolment"


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


def create_identity() -> Identity:
    """A new identity that is not saved to any file."""
    return Identity(Ed25519PrivateKey.generate())


def load_identity(certified: Path | None, own: Path) -> Identity:
    """The identity of a party, enrolled or not.

    `certified` is the PEM file with the key of its certificate. If it is None, the identity is the
    one kept in `own`, created if missing. Raises ConfigError as `load` and `load_or_create` do.
    """
    return load_or_create(own) if certified is None else load(certified)


def load(path: Path, remedy: str = _USE_ENROLMENT) -> Identity:
    """The identity in a PEM file; `remedy` says in an error what to do.

    Raises ConfigError if the file cannot be read, is not an unencrypted private key in PEM, or
    holds a key that is not Ed25519.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(
            f"the key file {path} cannot be read: {error.strerror}; {remedy}, and let this user "
            "read it"
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} is not a private key in PEM without a password ({error}); {remedy}"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{path} is not an Ed25519 key, and only such a key signs messages; {remedy}"
        )
    return Identity(key)


def load_or_create(path: Path) -> Identity:
    """The identity kept in `path` (32 raw bytes, readable only by its owner), created if missing.

    Raises DiskError if the file cannot be written; ConfigError if it cannot be read, or does not
    have 32 bytes.
    """
    try:
        if not path.exists():
            raw = Ed25519PrivateKey.generate().private_bytes_raw()
            atomic.write_file(path, raw, private=True)
    except OSError as error:
        raise DiskError(
            f"the key file {path} cannot be written: {error.strerror}; free or repair the disk, or "
            "let this user write to its folder"
        ) from error
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the key file {path} cannot be read: {error.strerror}; let this user read it"
        ) from error
    if len(raw) != _KEY_BYTES:
        raise ConfigError(
            f"{path} is not a key ({len(raw)} bytes, expected {_KEY_BYTES}); "
            "restore it, or delete it to get a new one"
        )
    return Identity(Ed25519PrivateKey.from_private_bytes(raw))


def verifies(key: str, message: bytes, signature: bytes) -> bool:
    """True if `signature` over `message` was made with the private half of `key`.

    `key` is 64 hex digits. A malformed key or signature gives False.
    """
    try:
        _public(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@functools.lru_cache(maxsize=4096)
def _public(key: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
