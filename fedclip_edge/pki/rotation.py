"""A new key for the coordinator of an enrolled fleet, which its devices accept without a visit.

Laws:
- The earlier key signs that the new one follows it, before it is replaced. The statement is in the
  registry, and the coordinator shows it to every device.
- The certificate of the earlier key goes on the revocation list, so its holder cannot connect to
  the broker.
- A command that was killed is completed by the next one: it makes no further key.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509

from fedclip_edge.errors import ConfigError
from fedclip_edge.pki import authority, registry
from fedclip_edge.pki.registry import Registry
from fedclip_edge.pki.revocation import Probe, reload_broker, write_lists
from fedclip_edge.pki.site import Folder, open_registry, read_authority
from fedclip_edge.protocol import signing
from fedclip_edge.protocol.hand_over import MAX_HAND_OVERS, hand_over
from fedclip_edge.records import COORDINATOR
from fedclip_edge.storage import atomic

_DONE = "the coordinator has a new key"


@dataclass(frozen=True)
class Rotated:
    """A new key of the coordinator."""

    key: str  # its public half, 64 hex digits
    probe: Probe  # of the new revocation list
    done: str  # what is done, for a message that the broker does not know of it


def rotate_coordinator(folder: Folder) -> Rotated:
    """Give the coordinator a new key and certificate, in the operator's folder.

    Raises ConfigError if the folder cannot be read, if another command uses it, or if the key was
    replaced too often; BrokerError if the broker cannot be made to read its files again.
    """
    place = folder.coordinator
    waiting, current = place / "next.key", place / "coordinator.key"
    certificate = place / "coordinator.crt"
    with open_registry(folder) as before:
        ca, known = read_authority(folder), before
        if not waiting.exists() or signing.load(waiting).key != before.coordinator:
            known = _announce(before, waiting, signing.load(current), certificate)
            registry.write(folder.registry, known)
        public = authority.public_key(known.coordinator)
        issued = authority.certify_coordinator(ca, public, COORDINATOR)
        atomic.write_file(certificate, issued.pem)
        _replace_key(current, waiting.read_bytes())
        waiting.unlink()
        probe = write_lists(folder, known)
        reload_broker(known, folder.broker, _DONE)
    return Rotated(known.coordinator, probe, _DONE)


def _announce(known: Registry, waiting: Path, old: signing.Identity, certificate: Path) -> Registry:
    """Make the new key, in the file `waiting`; returns the registry that names it."""
    if old.key != known.coordinator:
        raise ConfigError(
            f"{certificate.with_suffix('.key')} is not the key that the registry names for the "
            "coordinator; restore both files from one backup"
        )
    if len(known.hand_overs) >= MAX_HAND_OVERS:
        raise ConfigError(
            f"the coordinator's key was replaced {MAX_HAND_OVERS} times, and devices follow no "
            "more; make a new fleet with `fedclip-edge broker init`"
        )
    key = authority.new_key()
    atomic.write_file(waiting, authority.private_pem(key), private=True)
    serial = x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number
    new = authority.public_hex(key.public_key())
    return replace(
        known,
        coordinator=new,
        hand_overs=(*known.hand_overs, hand_over(old, new)),
        retired=(*known.retired, f"{serial:x}"),
    )


def _replace_key(path: Path, pem: bytes) -> None:
    """Replace a private key; its owner, who may be the user of a service, stays."""
    before = path.stat()
    atomic.write_file(path, pem, private=True)
    with contextlib.suppress(OSError):  # only root may set any owner
        os.chown(path, before.st_uid, before.st_gid)
