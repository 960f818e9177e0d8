"""The broker's lists of what it must refuse, and a way to see that it has read them.

A broker does not say which lists it uses. So every new revocation list contains a certificate that
exists for this purpose only, and whose key no device has: the probe. A broker that refuses the
probe as revoked has read this list or a later one.

Law: the probe is on the list before its key leaves this module, so no broker that has read the list
accepts it. It expires within a day in any case.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedclip_edge.errors import BrokerError
from fedclip_edge.pki import authority, mosquitto
from fedclip_edge.pki.registry import Registry
from fedclip_edge.pki.site import Folder, read_authority, read_earlier_authority
from fedclip_edge.storage import atomic

_PROBE_DAYS = 1


@dataclass(frozen=True)
class Probe:
    """A revoked certificate and its key, both PEM."""

    certificate: bytes
    key: bytes


def write_lists(folder: Folder, registry: Registry) -> Probe:
    """Write the revocation list and the access list of this registry into the broker's folder.

    While the authority is being replaced, the file has a list of either authority, both with the
    same serial numbers. Returns the probe of the new revocation list. Raises ConfigError if an
    authority cannot be read, OSError if a file cannot be read or written.
    """
    ca, earlier, broker = read_authority(folder), read_earlier_authority(folder), folder.broker
    key = authority.new_key()
    probe = authority.certify_device(ca, key.public_key(), "revocation-probe", _PROBE_DAYS)
    path = broker / "crl.pem"
    dead, before = (*registry.dead_serials, probe.serial), path.read_bytes()
    lists = [
        authority.revocation_list(one, dead, before) for one in (ca, earlier) if one is not None
    ]
    atomic.write_file(path, b"".join(lists))
    acl = mosquitto.access_list(registry.fleet, registry.revoked)
    atomic.write_file(broker / "fleet.acl", acl.encode())
    return Probe(probe.pem, authority.private_pem(key))


def reload_broker(registry: Registry, broker: Path, done: str) -> None:
    """Make the broker read the lists in the folder `broker`.

    `done` says what is done already, for the error. Raises BrokerError if the broker cannot be made
    to read them.
    """
    try:
        mosquitto.reload(registry.reload, broker / "mosquitto.conf")
    except BrokerError as error:
        raise BrokerError(not_yet(done, str(error), broker)) from error


def not_yet(done: str, why: str, broker: Path) -> str:
    """The message that the broker does not use its new lists, with what to do on its host."""
    return (
        f"{done}, but not yet at the broker: {why}; copy crl.pem and fleet.acl from {broker} to "
        "the broker's host and run there: sudo systemctl reload mosquitto (or send it SIGHUP)"
    )
