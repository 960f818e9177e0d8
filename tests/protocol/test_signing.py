"""Keys and signatures."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip_edge.errors import ConfigError, DiskError
from fedclip_edge.pki import authority
from fedclip_edge.protocol import signing

ME, OTHER = signing.create_identity(), signing.create_identity()


@settings(max_examples=50)
@given(st.binary(max_size=64), st.binary(max_size=64))
def test_only_the_message_that_was_signed_verifies(message: bytes, other: bytes) -> None:
    signature = ME.sign(message)
    assert len(signature) == 64
    assert signing.verifies(ME.key, message, signature)
    assert signing.verifies(ME.key, other, signature) == (message == other)
    assert not signing.verifies(OTHER.key, message, signature)


@settings(max_examples=50)
@given(st.integers(0, 511))
def test_a_signature_with_one_bit_changed_does_not_verify(bit: int) -> None:
    signature = bytearray(ME.sign(b"message"))
    signature[bit // 8] ^= 1 << bit % 8
    assert not signing.verifies(ME.key, b"message", bytes(signature))


@settings(max_examples=100)
@given(st.text(max_size=70), st.binary(max_size=70))
def test_what_is_no_key_or_no_signature_verifies_nothing(key: str, signature: bytes) -> None:
    assert not signing.verifies(key, b"message", signature)
    assert not signing.verifies(ME.key, b"message", signature)


def test_a_key_is_made_once_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "device.key"
    made = signing.load_or_create(path)
    assert signing.load_or_create(path).key == made.key
    assert signing.load_or_create(tmp_path / "other.key").key != made.key
    assert signing.verifies(made.key, b"m", signing.load_or_create(path).sign(b"m"))
    assert [p.name for p in path.parent.iterdir()] == ["device.key"]  # no partial file is left


def test_a_key_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        signing.load_or_create(tmp_path / "device.key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "device.key").stat().st_mode) == 0o600


def test_a_start_that_was_interrupted_is_gone_over(tmp_path: Path) -> None:
    (tmp_path / "device.partial").write_bytes(b"half")
    made = signing.load_or_create(tmp_path / "device.key")
    assert signing.load_or_create(tmp_path / "device.key").key == made.key


@pytest.mark.parametrize("content", [b"", b"k" * 31, b"k" * 33])
def test_a_file_that_is_no_key_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "device.key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"is not a key \({len(content)} bytes, expected 32\)"):
        signing.load_or_create(path)
    assert path.read_bytes() == content


def test_a_place_that_holds_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"key file .*device\.key cannot be written: File exists"):
        signing.load_or_create(tmp_path / "file" / "device.key")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        signing.load_or_create(tmp_path)


def test_the_key_of_a_certificate_signs(tmp_path: Path) -> None:
    key = authority.new_key()
    (tmp_path / "device.key").write_bytes(authority.private_pem(key))
    me = signing.load_identity(tmp_path / "device.key", tmp_path / "unused.key")
    assert me.key == authority.public_hex(key.public_key())
    assert signing.verifies(me.key, b"m", me.sign(b"m"))
    assert not (tmp_path / "unused.key").exists()
    own = signing.load_identity(None, tmp_path / "own.key")
    assert signing.load_identity(None, tmp_path / "own.key").key == own.key


def test_a_file_without_an_ed25519_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    with pytest.raises(ConfigError, match=r"device\.key cannot be read: No such file"):
        signing.load(path)
    other = ec.generate_private_key(ec.SECP256R1())
    pem = other.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    for content, said in ((b"", "not a private key in PEM"), (pem, "not an Ed25519 key")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=said):
            signing.load(path)
