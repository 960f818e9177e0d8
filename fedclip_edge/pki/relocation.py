"""A new address for the broker of an enrolled fleet.

Law: the broker's certificate keeps its earlier names, so the files can be used at both addresses.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedclip_edge.errors import ConfigError
from fedclip_edge.pki import registry
from fedclip_edge.pki.site import Folder, certify_broker, open_registry
from fedclip_edge.storage import atomic


def move_broker(folder: Folder, host: str, port: int | None) -> registry.Registry:
    """Write the broker's files for another host and port, and the address into the registry.

    Without `port` it stays. Returns the changed registry. Raises ConfigError if `host` is neither a
    host name nor an IP address, if the broker is there already, or if the folder cannot be read or
    another command uses it.
    """
    certificate, settings = folder.broker / "broker.crt", folder.broker / "mosquitto.conf"
    with open_registry(folder) as known:
        there = port or known.port
        if (host, there) == (known.host, known.port):
            raise ConfigError(f"the broker is at {host}:{there} already; name its new address")
        names, public = read_broker(certificate)
        issued = certify_broker(folder, public, tuple(dict.fromkeys([host, *names])))
        text = settings.read_text()
        moved = re.sub(r"(?m)^listener \d+", f"listener {there}", text)
        atomic.write_file(certificate, issued)
        atomic.write_file(settings, moved.encode())
        changed = replace(known, host=host, port=there, moved=True)
        registry.write(folder.registry, changed)
    return changed


def read_broker(path: Path) -> tuple[tuple[str, ...], Ed25519PublicKey]:
    """The names and addresses in the broker's certificate, and its key.

    Raises ConfigError if the file is no such certificate.
    """
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        key = found.public_key()
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise ConfigError(
            f"{path} is not the certificate of a broker ({error}); restore it from a backup"
        ) from error
    assert isinstance(key, Ed25519PublicKey)
    return tuple(str(name.value) for name in names), key
