"""TLS 1.3 with certificates of the fleet's own authority: settings, and reasons for a failed link.

paho cannot tell a refused certificate from a broken link. `examine` makes its own connection and
reads the TLS alert, so that a client that is refused permanently stops and all others reconnect.

Laws:
- Only an encrypted alert, sent after the broker proved its identity, counts as a refusal: anyone on
  the path can forge an alert in plain text. Only TLS 1.3 is used, because there the alert about the
  client's certificate is encrypted.
- A failure that a corrected clock or a restart can fix is not a refusal. "Not yet valid", for
  example, usually means a wrong clock on a box or broker without a clock battery.
"""

from __future__ import annotations

import datetime as dt
import socket
import ssl
from pathlib import Path

from cryptography import x509

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import ConfigError, LinkError, RefusedError
from fedclip_edge.transport.broker_limits import closes_connections

# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of openssl/x509_vfy.h.
_NOT_YET_VALID, _EXPIRED = 9, 10
REVOKED = "this device's certificate was revoked"
# Permanent refusals: alerts of RFC 8446, section 6.2, by OpenSSL's names.
_FOR_GOOD = {
    "SSLV3_ALERT_CERTIFICATE_REVOKED": (
        f"{REVOKED}; use the files of its last enrolment, or enroll the device under another id"
    ),
    "TLSV1_ALERT_UNKNOWN_CA": "this device's certificate was issued by another authority",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "this device's certificate is not accepted",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "this device's certificate is not a client certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": (
        "it requires a certificate; set certificate and key under [broker]"
    ),
    "TLSV1_ALERT_ACCESS_DENIED": "it denies access",
}
# A broker sends this alert if our certificate has expired, or if its revocation list has expired.
_MAYBE_OURS = "SSLV3_ALERT_CERTIFICATE_EXPIRED"


class _Socket(ssl.SSLSocket):
    """A socket that closes if its handshake fails; paho leaves that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT002 - as in the base class
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


def context(address: BrokerAddress) -> ssl.SSLContext | None:
    """The TLS settings for paho; None, for an unencrypted link, if the address has no `ca`.

    Raises ConfigError, naming the file, if a certificate or key cannot be read or used.
    """
    if address.ca is None:
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and host name
    made.sslsocket_class = _Socket
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    _use(made, address.ca)
    if address.certificate is not None and address.key is not None:
        _use(made, address.certificate, address.key)
    return made


def explain(address: BrokerAddress, error: OSError) -> Exception:
    """The error for a failed connection: LinkError if waiting may help, else ConfigError."""
    where = f"{address.host}:{address.port}"
    if isinstance(error, ConnectionResetError | BrokenPipeError | ssl.SSLEOFError):
        return LinkError(closes_connections(where))
    if not isinstance(error, ssl.SSLError):
        return LinkError(
            f"no MQTT broker answers at {where} ({error.strerror or error}); start one, or correct "
            "host and port under [broker]"
        )
    if not isinstance(error, ssl.SSLCertVerificationError):
        return LinkError(
            f"{where} answers, but the TLS 1.3 handshake failed ({error}); check that port under "
            "[broker] is the broker's TLS port"
        )
    if error.verify_code == _NOT_YET_VALID:
        today = dt.datetime.now(dt.timezone.utc).date()
        return LinkError(
            f"the certificate of {where} is not valid yet, by this box's clock ({today}); set the "
            "clock; the connection is retried until then"
        )
    if error.verify_code == _EXPIRED:
        return LinkError(
            f"the certificate of {where} has expired, or this box's clock is ahead; renew the "
            "certificate or set the clock"
        )
    return ConfigError(
        f"{where} does not show a certificate of the authority in {address.ca} for this host "
        f"name ({error.verify_message}); correct host or ca under [broker]"
    )


def examine(address: BrokerAddress, timeout_s: float) -> None:
    """Connect once, independently of paho, and return if the broker accepts this client.

    `timeout_s` limits each step, in seconds. Returns at once if the address has no `ca`. Raises
    RefusedError for a permanent refusal; ConfigError or LinkError, as chosen by `explain`, if the
    handshake fails, for example because the broker's certificate is not valid; LinkError if no
    broker answers, or if it refuses the client for a reason that may pass; ConfigError as `context`
    does.
    """
    settings = context(address)
    if settings is None:
        return
    try:
        with (
            socket.create_connection((address.host, address.port), timeout_s) as plain,
            settings.wrap_socket(plain, server_hostname=address.host) as link,
        ):
            _await_alert(address, link)
    except OSError as error:
        raise explain(address, error) from None


def _await_alert(address: BrokerAddress, link: ssl.SSLSocket) -> None:
    try:
        link.read(1)
    except TimeoutError:
        return  # the broker waits for a CONNECT: the client is accepted
    except ssl.SSLError as error:
        reason = error.reason or ""
        if reason in _FOR_GOOD:
            said = _FOR_GOOD[reason]
        elif reason == _MAYBE_OURS and _has_expired(address.certificate):
            said = "this device's certificate has expired; renew it"
        else:
            raise LinkError(f"the broker ended the TLS handshake ({reason})") from None
        raise RefusedError(
            f"the broker at {address.host}:{address.port} refused this client permanently: {said}"
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
            f"{key or first} under [broker] is not a PEM certificate or key, or does not belong to "
            f"the pair ({error.reason or error}); use the files of one enrolment"
        ) from None
    except OSError as error:
        missing = first if not first.exists() else key or first
        raise ConfigError(
            f"{missing} under [broker] cannot be read: {error.strerror}; correct the path, or let "
            "this user read it"
        ) from None
