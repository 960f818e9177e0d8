"""Ed25519 keys: who said it.

An enrolled party signs with the key of its certificate (authority.py), and its peers believe that
key alone. One key serves both: TLS 1.3 signs what opens with 64 spaces, a message of ours opens
with its topic, so neither signature can pass for the other.

Without enrolment each party makes its key on first start, and its peers trust the first key they
see for the length of one run. That stops a forged or altered message, not an impostor who was
there first: it is meant for a loopback broker.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedclip_edge.errors import ConfigError
from fedclip_edge.storage import atomic

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


def create_identity() -> Identity:
    """An identity that no file remembers."""
    return Identity(Ed25519PrivateKey.generate())


def load_identity(certified: Path | None, own: Path) -> Identity:
    """The identity of an enrolled party, whose certificate's key is in `certified` (PEM).

    Without one, the identity in `own`, made if missing. Raises ConfigError as the two below do.
    """
    return load_or_create(own) if certified is None else load(certified)


def load(path: Path) -> Identity:
    """The identity in a PEM file; raises ConfigError where there is no Ed25519 key in it."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(
            f"the key file {path} cannot be read: {error.strerror}; name the one of the device's "
            "enrolment under [broker] key, readable by the user that runs this"
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is no private key in PEM: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{path} holds a key of another kind than Ed25519, which signs the messages; "
            "`fedclip-edge enroll` makes one"
        )
    return Identity(key)


def load_or_create(path: Path) -> Identity:
    """The identity kept in `path` (32 raw bytes, readable by its owner alone), made if missing.

    Raises ConfigError where the file is no key or cannot be written.
    """
    try:
        if not path.exists():
            raw = Ed25519PrivateKey.generate().private_bytes_raw()
            atomic.write_file(path, raw, private=True)
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
    """True where `signature` over `message` was made with the private half of `key` (hex)."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
