"""The socket of a page, its TLS settings and its address; the web server is not loaded."""

from __future__ import annotations

import socket
import ssl

from fedclip_edge.config.page import PageSettings
from fedclip_edge.errors import ConfigError


def open_listener(settings: PageSettings) -> socket.socket:
    """Listen at the address of a page; raises ConfigError if it cannot be opened."""
    host, port = settings.address
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"[page] listen: {settings.listen} cannot be opened ({error.strerror or error}); choose "
            "another port, or an address of this machine"
        ) from error


def tls_context(settings: PageSettings) -> ssl.SSLContext | None:
    """Return the TLS settings of a page; None if it has no certificate.

    Raises ConfigError if the certificate or the key cannot be used.
    """
    if settings.certificate is None:
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        made.load_cert_chain(settings.certificate, settings.key)
    except OSError as error:  # ssl.SSLError is one
        reason = getattr(error, "reason", None) or error.strerror or error
        raise ConfigError(
            f"{settings.certificate} and {settings.key} under [page] cannot be used as certificate "
            f"and key ({reason}); name a PEM certificate chain and its private key, both readable "
            "by this user"
        ) from error
    return made


def address_of(settings: PageSettings) -> str:
    """Return the address of a page, as a person opens it."""
    host, port = settings.address
    named = next(iter(settings.names), f"[{host}]" if ":" in host else host)
    return f"{'http' if settings.certificate is None else 'https'}://{named}:{port}"
