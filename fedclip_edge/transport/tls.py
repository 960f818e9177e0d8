"""The link under the messages: TLS 1.3 with certificates of the fleet's own authority.

paho shows a refused certificate like a dropped link. `examine` makes a connection of its own and
reads the alert, so that who is refused for good learns it, and everybody else comes back.

Laws:
- Only what came encrypted, after the broker proved who it is, is a refusal: anybody on the way can
  write an alert in the clear. TLS 1.3 judges the client last, so nothing older is spoken.
- What another clock or a restart can mend is no refusal: "not yet valid" is a box without a battery
  for its clock, or a broker without one.
"""

from __future__ import annotations

import datetime as dt
import socket
import ssl
from pathlib import Path

from cryptography import x509

from fedclip_edge.config import BrokerAddress
from fedclip_edge.errors import ConfigError, LinkError, RefusedError

# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of openssl/x509_vfy.h.
_NOT_YET_VALID, _EXPIRED = 9, 10
# Alerts of RFC 8446, 6.2, as OpenSSL words them, that no waiting will change.
_FOR_GOOD = {
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "this device's certificate was revoked",
    "TLSV1_ALERT_UNKNOWN_CA": "this device's certificate is of another authority",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "this device's certificate is not accepted",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "this device's certificate is not of a client's kind",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "a certificate is required, and none is configured",
    "TLSV1_ALERT_ACCESS_DENIED": "access is denied",
}
# A broker says this of our certificate, or where its revocation list is past its end.
_MAYBE_OURS = "SSLV3_ALERT_CERTIFICATE_EXPIRED"


class _Socket(ssl.SSLSocket):
    """Closed where its handshake fails: paho would leave that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT002 - as its base has it
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


def context(address: BrokerAddress) -> ssl.SSLContext | None:
    """The TLS settings for paho; None without a `ca`, for a link that is not encrypted.

    Raises ConfigError, naming the file, where one cannot be used.
    """
    if address.ca is None:
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies, and checks the host's name
    made.sslsocket_class = _Socket
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    _use(made, address.ca)
    if address.certificate is not None and address.key is not None:
        _use(made, address.certificate, address.key)
    return made


def explain(address: BrokerAddress, error: OSError) -> Exception:
    """The error for a failed handshake: ConfigError, or LinkError where waiting may mend it."""
    where = f"{address.host}:{address.port}"
    if not isinstance(error, ssl.SSLCertVerificationError):
        return LinkError(f"{where} answers, but not with TLS 1.3 as expected ({error})")
    if error.verify_code == _NOT_YET_VALID:
        today = dt.datetime.now(dt.timezone.utc).date()
        return LinkError(
            f"the certificate of {where} is not valid yet, by this box's clock ({today}); "
            "the clock is behind: it is tried again until it is set"
        )
    if error.verify_code == _EXPIRED:
        return LinkError(f"the certificate of {where} has expired, or this box's clock is ahead")
    return ConfigError(
        f"{where} does not show a certificate of the authority in {address.ca} for this name "
        f"({error.verify_message}); correct host or ca under [broker]"
    )


def examine(address: BrokerAddress, timeout_s: float) -> None:
    """Connects once beside paho; returns where the broker has nothing against this client.

    Raises RefusedError for what is refused for good; ConfigError or LinkError, as `explain` does,
    for a broker that is not accepted from here; LinkError where none answers.
    """
    settings = context(address)
    if settings is None:
        return
    where = f"{address.host}:{address.port}"
    try:
        with (
            socket.create_connection((address.host, address.port), timeout_s) as plain,
            settings.wrap_socket(plain, server_hostname=address.host) as link,
        ):
            _await_alert(address, link)
    except ssl.SSLError as error:
        raise explain(address, error) from None
    except OSError as error:
        raise LinkError(f"no broker answers at {where} ({error.strerror or error})") from None


def _await_alert(address: BrokerAddress, link: ssl.SSLSocket) -> None:
    try:
        link.read(1)
    except TimeoutError:
        return  # it waits for us to speak: we are in
    except ssl.SSLError as error:
        reason = error.reason or ""
        if reason in _FOR_GOOD:
            said = _FOR_GOOD[reason]
        elif reason == _MAYBE_OURS and _has_expired(address.certificate):
            said = "this device's certificate has expired: renew it"
        else:
            raise LinkError(f"the broker ended the handshake ({reason})") from None
        raise RefusedError(
            f"the broker at {address.host}:{address.port} refused this client for good: {said}"
        ) from None


def _has_expired(certificate: Path | None) -> bool:
    if certificate is None:
        return False
    ours = x509.load_pem_x509_certificate(certificate.read_bytes())
    return ours.not_valid_after_utc < dt.datetime.now(dt.timezone.utc)


def _use(made: ssl.SSLContext, first: Path, key: Path | None = None) -> None:
    try:
        if key is None:
            made.load_verify_locations(cafile=str(first))
        else:
            made.load_cert_chain(str(first), str(key))
    except ssl.SSLError as error:
        raise ConfigError(
            f"{key or first} under [broker] is no certificate or key, or not of the pair "
            f"({error.reason or error}); take the files of one enrolment"
        ) from None
    except OSError as error:
        missing = first if not first.exists() else key or first
        raise ConfigError(
            f"{missing} under [broker] cannot be read: {error.strerror}; correct the path, or let "
            "the user that runs this read it"
        ) from None
