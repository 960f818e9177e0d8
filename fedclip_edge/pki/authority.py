"""A private certificate authority: its key, the certificates it signs, its revocation list.

X.509 as in RFC 5280, through `cryptography`. Functions take and return bytes; none opens a file.

Laws:
- All keys are Ed25519, which mosquitto 2.0.11 on OpenSSL 3 and Python's ssl accept. So a device
  needs only one key: it authenticates the TLS connection and signs messages. The certificate binds
  this key to the device's id.
- A device's certificate cannot identify a broker, because it allows client authentication only.
- The broker's and the coordinator's certificates and the revocation list expire when the authority
  does, not before. mosquitto 2.0.11 refuses every client once its revocation list or its own
  certificate has expired.
- A new revocation list is dated at least a second later than the one it replaces, because OpenSSL
  compares the dates in whole seconds and uses the newest list.
- All authorities of a fleet have the same name, and certificates and lists say which key signed
  them. So a certificate of the new key by the earlier one (`certify_successor`) is self-issued, the
  NewWithOld of RFC 4210, section 4.4, and may stand between an authority and a broker.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedclip_edge.errors import ConfigError
from fedclip_edge.records import check_id

AUTHORITY_NAME = "fedclip-edge authority"  # common name
# Longer than any fleet will run, because no certificate is valid after the authority expires.
AUTHORITY_DAYS = 20 * 365
DEVICE_DAYS = 2 * 365
# Certificates begin in the past, so that machines whose clocks are slow accept them.
_BACKDATED = dt.timedelta(days=1)
# Revocation lists begin in the past too. The hour leaves room for many lists in quick succession:
# each is dated at least a second after the one before, and the date must not be in the future.
_LIST_BACKDATED = dt.timedelta(hours=1)
_PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Authority:
    """An authority: its certificate and its private key."""

    certificate: x509.Certificate
    key: Ed25519PrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate (PEM), which is public."""
        return self.certificate.public_bytes(_PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key (PEM, not encrypted), which must not leave the operator."""
        return private_pem(self.key)


@dataclass(frozen=True)
class Issued:
    """A certificate (PEM) and the registry's record of it."""

    pem: bytes
    serial: str  # hex
    expires: str  # ISO date
    key: str  # the public key, 64 hex digits


def new_key() -> Ed25519PrivateKey:
    """A new private key, not saved to any file."""
    return Ed25519PrivateKey.generate()


def private_pem(key: Ed25519PrivateKey) -> bytes:
    """A private key in PEM (PKCS #8), unencrypted, because a box has no user to type a password."""
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def create_authority(fleet: str) -> Authority:
    """A new authority of a fleet, valid for AUTHORITY_DAYS; its name contains that of the fleet."""
    key, now = new_key(), _now()
    name = _name(AUTHORITY_NAME, fleet)
    usage = _usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + dt.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, None)
    )
    return Authority(certificate, key)


def load(certificate_pem: bytes, key_pem: bytes) -> Authority:
    """The authority with this certificate and key.

    Raises ConfigError if they are not PEM, or if the key is not the certificate's Ed25519 key.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"the authority's certificate or key (ca.crt, ca.key) is damaged: {error}; restore "
            "both files from a backup"
        ) from error
    if not isinstance(key, Ed25519PrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(
            "the authority's key (ca.key) does not belong to its certificate (ca.crt); restore "
            "both files from a backup"
        )
    return Authority(certificate, key)


def certify_successor(earlier: Authority, new: Authority) -> bytes:
    """A certificate (PEM) of the `new` authority's key, signed by the `earlier` one.

    A program that trusts only the earlier authority accepts with it what the new one certified. It
    is valid as long as the earlier one. Both have the same name.
    """
    key = new.key.public_key()
    builder = (
        x509.CertificateBuilder(
            earlier.certificate.subject, new.certificate.subject, key, x509.random_serial_number()
        )
        .not_valid_before(_now() - _BACKDATED)
        .not_valid_after(earlier.certificate.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_signed_by(earlier), critical=False)
    )
    return builder.sign(earlier.key, None).public_bytes(_PEM)


def certify_broker(authority: Authority, key: Ed25519PublicKey, hosts: Sequence[str]) -> Issued:
    """A broker's certificate for all names and addresses in `hosts`.

    It is valid as long as the authority. Raises ConfigError for a host that is neither a host name
    nor an IP address.
    """
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    ends = authority.certificate.not_valid_after_utc
    return _issue(authority, "broker", key, ends, ExtendedKeyUsageOID.SERVER_AUTH, names)


def certify_coordinator(authority: Authority, key: Ed25519PublicKey, name: str) -> Issued:
    """A client certificate with this common name, valid as long as the authority."""
    ends = authority.certificate.not_valid_after_utc
    return _issue(authority, name, key, ends, ExtendedKeyUsageOID.CLIENT_AUTH)


def certify_device(authority: Authority, key: Ed25519PublicKey, id: str, days: int) -> Issued:
    """A client certificate whose common name is the device's id.

    It is valid for `days`, but not longer than the authority.
    """
    ends = min(_now() + dt.timedelta(days=days), authority.certificate.not_valid_after_utc)
    return _issue(authority, id, key, ends, ExtendedKeyUsageOID.CLIENT_AUTH)


def revocation_list(authority: Authority, serials: Iterable[str], before: bytes = b"") -> bytes:
    """The revocation list (PEM) of the certificates with these serials (hex).

    `before` is the list (PEM) that it replaces, if any; the new list has a later time. Raises
    ValueError if `before` is not a revocation list or a serial is not hex.
    """
    now = _now()
    this_update = now - _LIST_BACKDATED
    if before:
        last = x509.load_pem_x509_crl(before).last_update_utc
        this_update = max(this_update, last + dt.timedelta(seconds=1))
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(this_update)
        .next_update(authority.certificate.not_valid_after_utc)
        .add_extension(_signed_by(authority), critical=False)
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder(int(serial, 16), now)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(authority.key, None).public_bytes(_PEM)


def read_request(pem: bytes) -> tuple[str, Ed25519PublicKey]:
    """The name and the key in a signing request (PKCS #10, PEM).

    Raises ConfigError if `pem` is not a request, or if the request is not signed with its own key,
    has a key that is not Ed25519, or does not have exactly one common name.
    """
    try:
        request = x509.load_pem_x509_csr(pem)
        names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        key, sound = request.public_key(), request.is_signature_valid
    except ValueError as error:
        raise ConfigError(
            f"the file is not a certificate signing request in PEM format: {error}; create one "
            "with `openssl req -new`"
        ) from error
    if not sound:
        raise ConfigError("the signing request is not signed with its own key; create it again")
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(
            "the signing request's key is not an Ed25519 key, which a device needs to sign its "
            "messages; create one with `openssl genpkey -algorithm ed25519`"
        )
    if len(names) != 1:
        raise ConfigError(
            f"the signing request has {len(names)} common names and needs one, the device's id; "
            "create it with -subj /CN=ID"
        )
    return str(names[0].value), key


def public_hex(key: Ed25519PublicKey) -> str:
    """A key as 64 hex digits, the form in messages and registries."""
    return key.public_bytes_raw().hex()


def public_key(key: str) -> Ed25519PublicKey:
    """The key from its `public_hex` form; raises ValueError if it is not 32 bytes in hex."""
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))


def _issue(
    authority: Authority,
    name: str,
    key: Ed25519PublicKey,
    ends: dt.datetime,
    purpose: x509.ObjectIdentifier,
    names: x509.SubjectAlternativeName | None = None,
) -> Issued:
    serial = x509.random_serial_number()
    builder = (
        x509.CertificateBuilder(authority.certificate.subject, _name(name), key, serial)
        .not_valid_before(_now() - _BACKDATED)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_signed_by(authority), critical=False)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    certificate = builder.sign(authority.key, None)
    expires = certificate.not_valid_after_utc.date().isoformat()
    return Issued(certificate.public_bytes(_PEM), f"{serial:x}", expires, public_hex(key))


def _signed_by(authority: Authority) -> x509.AuthorityKeyIdentifier:
    key = x509.SubjectKeyIdentifier.from_public_key(authority.key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key)


def _host(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    try:
        for label in host.split("."):
            check_id(label.lower(), "host")
        return x509.DNSName(host)
    except ValueError:
        raise ConfigError(f"host {host!r} is neither a host name nor an IP address") from None


def _name(common: str, organization: str = "") -> x509.Name:
    last = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if not organization:
        return x509.Name(last)
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization), *last])


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc).replace(microsecond=0)
