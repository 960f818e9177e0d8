"""The operator's folder for one fleet: the authority, and the files of broker and coordinator.

    FOLDER/ca.crt, ca.key           the authority; its key stays here
    FOLDER/broker/                  mosquitto.conf and its files; copied to the broker's host
    FOLDER/coordinator/             certificate, key, devices.json; copied to the coordinator's host
    FOLDER/export/export.key        signs bundles; copied to the machine that exports, if another
    FOLDER/earlier/                 the earlier authority, while it is being replaced

Laws:
- Private keys are readable only by their owner. Only the broker's is also readable by the group
  `mosquitto`, if root creates a folder that the broker on the same machine uses.
- Every file is written whole or not at all, and an existing authority is never overwritten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedclip_edge.errors import ConfigError
from fedclip_edge.pki import authority, mosquitto, registry
from fedclip_edge.pki.authority import Authority
from fedclip_edge.pki.mosquitto import access_list
from fedclip_edge.pki.registry import Registry
from fedclip_edge.records import COORDINATOR, check_id
from fedclip_edge.storage import atomic
from fedclip_edge.storage.lock import lock_file

# Names of a broker on the same machine; the broker's certificate always includes them.
_LOCAL = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Folder:
    """The paths in an operator's folder."""

    path: Path

    @property
    def broker(self) -> Path:
        return self.path / "broker"

    @property
    def coordinator(self) -> Path:
        return self.path / "coordinator"

    @property
    def export_key(self) -> Path:
        return self.path / "export" / "export.key"

    @property
    def earlier(self) -> Path:
        return self.path / "earlier"

    @property
    def registry(self) -> Path:
        return self.coordinator / "devices.json"


def create_site(
    folder: Path,
    hosts: Sequence[str],
    *,
    fleet: str,
    port: int = mosquitto.PORT,
    devices: int = mosquitto.DEVICES,
    broker_home: Path | None = None,
    reload: str = "",
) -> Folder:
    """Create the operator's folder, with an authority and the broker's and coordinator's files.

    `hosts` are the broker's names and addresses; devices connect to the first. The broker's limits
    are made for a fleet of `devices` devices. `broker_home` is the folder of the broker's files on
    its host; None means the folder where they are created. `reload` is the command that makes the
    broker read its files again; if it is empty, SIGHUP is sent to a mosquitto on this machine.
    Raises ConfigError if `folder` exists, a host is neither a host name
    nor an IP address, or `fleet` is not a valid id.
    """
    made = Folder(folder.absolute())
    try:
        ca = authority.create_authority(check_id(fleet, "fleet"))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    broker_key, coordinator_key, export_key = (authority.new_key() for _ in range(3))
    names = tuple(dict.fromkeys([*hosts, *_LOCAL]))
    broker = authority.certify_broker(ca, broker_key.public_key(), names)
    client = authority.certify_coordinator(ca, coordinator_key.public_key(), COORDINATOR)
    exporter = authority.public_hex(export_key.public_key())
    registry_ = Registry(fleet, names[0], port, client.key, reload, export_key=exporter)
    contents = {
        "ca.crt": ca.pem,
        "ca.key": ca.key_pem,
        "broker/ca.crt": ca.pem,
        "broker/broker.crt": broker.pem,
        "broker/broker.key": authority.private_pem(broker_key),
        "broker/crl.pem": authority.revocation_list(ca, ()),
        "broker/fleet.acl": access_list(fleet).encode(),
        "broker/mosquitto.conf": mosquitto.settings(
            fleet, broker_home or made.broker, port, devices
        ).encode(),
        "coordinator/ca.crt": ca.pem,
        "coordinator/coordinator.crt": client.pem,
        "coordinator/coordinator.key": authority.private_pem(coordinator_key),
        "coordinator/devices.json": registry.pack(registry_),
        "export/export.key": authority.private_pem(export_key),
    }
    try:
        atomic.make_folder(made.path, contents, [name for name in contents if ".key" in name])
    except FileExistsError:
        raise ConfigError(
            f"{made.path} already exists and was not changed; name another folder"
        ) from None
    if broker_home is None:
        mosquitto.let_daemon_read(made.broker)
    return made


@contextlib.contextmanager
def open_registry(folder: Folder) -> Iterator[Registry]:
    """Yield the registry, locked against other commands until the `with` block ends.

    Raises ConfigError if it cannot be read, or if another command has locked it.
    """
    # Read before locking, so that a wrong folder gives an error and no lock file is left in it.
    registry.read(folder.registry)
    with contextlib.closing(lock_file(folder.path / ".lock", str(folder.path))):
        yield registry.read(folder.registry)


def read_authority(folder: Folder) -> Authority:
    """The authority that issues the fleet's certificates.

    Raises ConfigError if its files cannot be read or are damaged.
    """
    return _read(folder.path)


def read_earlier_authority(folder: Folder) -> Authority | None:
    """The authority that is being replaced (replacement.py), or None; raises as the other does."""
    return _read(folder.earlier) if folder.earlier.is_dir() else None


def certify_broker(folder: Folder, key: Ed25519PublicKey, hosts: Sequence[str]) -> bytes:
    """The broker's certificate (PEM) for `hosts`, with what every device needs to accept it.

    Raises ConfigError as `read_authority` and `authority.certify_broker` do.
    """
    ca, earlier = read_authority(folder), read_earlier_authority(folder)
    pem = authority.certify_broker(ca, key, hosts).pem
    return pem if earlier is None else pem + authority.certify_successor(earlier, ca)


def _read(place: Path) -> Authority:
    try:
        certificate = (place / "ca.crt").read_bytes()
        key = (place / "ca.key").read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be read: {error.strerror}; this command needs the "
            "authority's files ca.crt and ca.key"
        ) from error
    return authority.load(certificate, key)
