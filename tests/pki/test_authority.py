"""The certificate authority: its certificates, revocation lists and periods of validity."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from signing_request import request

from fedclip_edge.errors import ConfigError
from fedclip_edge.pki import authority
from fedclip_edge.pki.authority import Issued

CA = authority.create_authority("lab")
IDS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?", fullmatch=True)


def read(issued: Issued) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.pem)


@settings(max_examples=30)
@given(IDS)
def test_a_devices_certificate_names_its_id_its_key_and_its_signer(id: str) -> None:
    key = authority.new_key().public_key()
    issued = authority.certify_device(CA, key, id, 30)
    certificate = read(issued)
    certificate.verify_directly_issued_by(CA.certificate)
    (name,) = certificate.subject
    assert (name.oid, name.value) == (NameOID.COMMON_NAME, id)
    assert authority.public_hex(key) == issued.key
    assert authority.public_key(issued.key) == certificate.public_key() == key
    assert int(issued.serial, 16) == certificate.serial_number


def test_a_devices_certificate_can_be_no_brokers_and_a_brokers_no_clients() -> None:
    key = authority.new_key().public_key()
    device = read(authority.certify_device(CA, key, "localhost", 1))
    broker = read(authority.certify_broker(CA, key, ["localhost"]))
    usage = x509.ExtendedKeyUsage
    assert list(device.extensions.get_extension_for_class(usage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    assert list(broker.extensions.get_extension_for_class(usage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]
    for leaf in (device, broker):
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_nothing_of_the_fleets_own_expires_before_the_authority() -> None:
    key = authority.new_key().public_key()
    ends = CA.certificate.not_valid_after_utc
    assert ends > dt.datetime.now(dt.timezone.utc) + dt.timedelta(days=19 * 365)
    assert read(authority.certify_broker(CA, key, ["h"])).not_valid_after_utc == ends
    assert read(authority.certify_coordinator(CA, key, "coordinator")).not_valid_after_utc == ends
    assert x509.load_pem_x509_crl(authority.revocation_list(CA, ())).next_update_utc == ends
    # a device's certificate ends with that of the authority
    assert read(authority.certify_device(CA, key, "a", 10**4)).not_valid_after_utc == ends


def test_a_certificate_holds_on_a_clock_that_is_behind_by_hours() -> None:
    key = authority.new_key().public_key()
    hours_ago = dt.datetime.now(dt.timezone.utc) - dt.timedelta(hours=20)
    assert read(authority.certify_device(CA, key, "a", 1)).not_valid_before_utc < hours_ago
    assert CA.certificate.not_valid_before_utc < hours_ago


@settings(max_examples=20)
@given(st.lists(st.sets(st.integers(1, 2**159)), min_size=1, max_size=8))
def test_a_later_list_says_a_later_time_that_has_passed(revoked: list[set[int]]) -> None:
    pem, last = b"", None
    for serials in revoked:
        pem = authority.revocation_list(CA, [f"{serial:x}" for serial in serials], pem)
        made = x509.load_pem_x509_crl(pem)
        assert made.is_signature_valid(CA.certificate.public_key())  # type: ignore[arg-type]
        assert {entry.serial_number for entry in made} == serials
        assert last is None or made.last_update_utc > last
        last = made.last_update_utc
        assert last < dt.datetime.now(dt.timezone.utc)


def test_a_brokers_certificate_holds_for_names_and_addresses() -> None:
    key = authority.new_key().public_key()
    made = read(authority.certify_broker(CA, key, ["edge.example", "192.0.2.1", "::1"]))
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["edge.example"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.1", "::1"]


@pytest.mark.parametrize("host", ["", "a b", "a..b", "*.example", "https://edge", "edge:8883"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="neither a host name nor an IP address"):
        authority.certify_broker(CA, authority.new_key().public_key(), [host])


def test_a_request_brings_its_name_and_its_key() -> None:
    key = authority.new_key()
    name, public = authority.read_request(request("cam-07", key))
    assert (name, public) == ("cam-07", key.public_key())


def test_requests_that_are_none_are_refused() -> None:
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cam-01")])
    builder = x509.CertificateSigningRequestBuilder()
    pem = serialization.Encoding.PEM
    other = builder.subject_name(named).sign(
        ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()
    )
    nameless = builder.subject_name(x509.Name([])).sign(authority.new_key(), None)
    good = x509.load_pem_x509_csr(request())
    der = bytearray(good.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1  # a byte of the signature
    forged = x509.load_der_x509_csr(bytes(der))
    for data, said in (
        (b"", "not a certificate signing request"),
        (CA.pem, "not a certificate signing request"),
        (other.public_bytes(pem), "not an Ed25519 key"),
        (nameless.public_bytes(pem), "has 0 common names"),
        (forged.public_bytes(pem), "not signed with its own key"),
    ):
        with pytest.raises(ConfigError, match=said):
            authority.read_request(data)


def test_an_authority_is_its_two_files_and_no_others() -> None:
    assert authority.load(CA.pem, CA.key_pem).key_pem == CA.key_pem
    other = authority.create_authority("lab")
    with pytest.raises(ConfigError, match="does not belong to its certificate"):
        authority.load(CA.pem, other.key_pem)
    with pytest.raises(ConfigError, match="damaged"):
        authority.load(CA.pem, b"")


def test_pythons_ssl_takes_the_files(tmp_path: Path) -> None:
    key = authority.new_key()
    issued = authority.certify_device(CA, key.public_key(), "cam-01", 1)
    (tmp_path / "crt").write_bytes(issued.pem)
    (tmp_path / "key").write_bytes(authority.private_pem(key))
    made = ssl.create_default_context(cadata=CA.pem.decode())
    made.load_cert_chain(tmp_path / "crt", tmp_path / "key")
