"""Comparison of a program's own certificate with its configuration.

The broker's access list drops what a program sends to the topics of another device or fleet, and
the program waits for an answer that never comes. So the names are compared before it connects.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from fedclip_edge.errors import ConfigError
from fedclip_edge.pki.authority import AUTHORITY_NAME


def check_own_certificate(certificate: Path | None, name: str, fleet: str) -> None:
    """Raise ConfigError if the certificate belongs to another device, or to another fleet.

    Certificates of authorities that `broker init` did not create are not checked, because their
    names may mean something else. A file that cannot be read is left to TLS, which reports it.
    """
    if certificate is None:
        return
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError):
        return
    if _only(found.issuer, NameOID.COMMON_NAME) != AUTHORITY_NAME:
        return
    issued_to = _only(found.subject, NameOID.COMMON_NAME)
    if issued_to != name:
        raise ConfigError(
            f"{certificate} was issued to {issued_to!r}, not to {name!r}; correct the id, or use "
            "the certificate and key of this id"
        )
    issued_for = _only(found.issuer, NameOID.ORGANIZATION_NAME)
    if issued_for not in (None, fleet):
        raise ConfigError(
            f"{certificate} was issued for the fleet {issued_for!r}, not for {fleet!r}; correct "
            "'fleet', or use the files of this fleet's enrolment"
        )


def _only(name: x509.Name, kind: x509.ObjectIdentifier) -> str | None:
    found = name.get_attributes_for_oid(kind)
    return str(found[0].value) if found else None
