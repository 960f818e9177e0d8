"""A certificate signing request as a device makes it."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from fedclip_edge.pki import authority


def request(name: str = "cam-01", key: Ed25519PrivateKey | None = None) -> bytes:
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(named)
    signed = made.sign(key or authority.new_key(), None)
    return signed.public_bytes(serialization.Encoding.PEM)
