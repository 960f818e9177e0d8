"""The operator's folder for one fleet, and the enrolment, renewal and revocation of its devices.

    FOLDER/ca.crt, ca.key           the authority; its key stays here
    FOLDER/broker/                  mosquitto.conf and its files; copied to the broker's host
    FOLDER/coordinator/             certificate, key, devices.json; copied to the coordinator's host

Laws:
- Private keys are readable only by their owner. A device's key is kept only in its archive; with a
  signing request it never leaves the box.
- Every file is written whole or not at all, and an existing authority is never overwritten.
- A revocation is written to the registry first, so that the coordinator refuses the device even if
  a later step fails. A repeated `revoke` does every step again.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedclip_edge.errors import BrokerError, ConfigError
from fedclip_edge.pki import authority, mosquitto, registry
from fedclip_edge.pki.authority import Authority
from fedclip_edge.pki.mosquitto import access_list
from fedclip_edge.pki.registry import Device, Registry
from fedclip_edge.records import check_id
from fedclip_edge.storage import atomic
from fedclip_edge.storage.lock import lock_file

COORDINATOR = "coordinator"  # the user name in the access list
# Names of a broker on the same machine; the broker's certificate always includes them.
_LOCAL = ("localhost", "127.0.0.1")

_AGENT = """\
# One device. Relative paths are relative to this file.

id = {id}
fleet = {fleet}
bundle = "bundle"                  # a copy of the coordinator's bundle
state_dir = "/var/lib/fedclip-edge"
# The public key of the only coordinator that this device accepts.
coordinator_key = {coordinator}

[data]
folder = "/srv/pictures"           # one folder per class, named as in the bundle

[broker]
host = {host}
port = {port}
ca = "ca.crt"
certificate = "device.crt"
key = "device.key"
"""


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
    are made for a fleet of `devices` devices. `broker_home` is the
    folder of the broker's files on its host; None means the folder where they are created. `reload`
    is the command that makes the broker read its files again; if it is empty, SIGHUP is sent to a
    mosquitto on this machine. Raises ConfigError if `folder` exists, a host is neither a host name
    nor an IP address, or `fleet` is not a valid id.
    """
    made = Folder(folder.absolute())
    ca = authority.create_authority()
    broker_key, coordinator_key = authority.new_key(), authority.new_key()
    names = tuple(dict.fromkeys([*hosts, *_LOCAL]))
    broker = authority.certify_broker(ca, broker_key.public_key(), names)
    client = authority.certify_coordinator(ca, coordinator_key.public_key(), COORDINATOR)
    try:
        registry_ = Registry(check_id(fleet, "fleet"), names[0], port, client.key, reload)
    except ValueError as error:
        raise ConfigError(str(error)) from None
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
    }
    try:
        atomic.make_folder(made.path, contents, [name for name in contents if ".key" in name])
    except FileExistsError:
        raise ConfigError(
            f"{made.path} already exists and was not changed; name another folder"
        ) from None
    return made


def enroll(
    folder: Folder,
    id: str = "",
    *,
    request: bytes | None = None,
    out: Path | None = None,
    days: int = authority.DEVICE_DAYS,
) -> Path:
    """Enroll a device and return the path of its archive (tar), by default ID.tar.

    The archive holds agent.toml, the device's certificate and key, and the authority's certificate.
    With a signing `request` (PEM) the id is the name in it, and the key stays where it was made and
    is not in the archive. The certificate is valid for `days`.

    Raises ConfigError if the id is malformed, reserved, enrolled or revoked; if the request is
    malformed or names another id; if its key belongs to another device or the coordinator; if the
    archive exists; or if the folder cannot be read or another command uses it.
    """
    key = None
    if request is None:
        key = authority.new_key()
        name, public = id, key.public_key()
    else:
        name, public = authority.read_request(request)
        if id not in ("", name):
            raise ConfigError(
                f"the signing request is for {name!r}, not for {id!r}; correct the id or the "
                "request"
            )
    with _books(folder) as registry_:
        _check_new(registry_, name, authority.public_hex(public))
        target = out or Path(f"{name}.tar")
        if target.exists():
            raise ConfigError(f"{target} already exists; name another file with --out")
        ca = _authority(folder)
        issued = authority.certify_device(ca, public, name, days)
        files = {
            "agent.toml": _agent_toml(registry_, name).encode(),
            "ca.crt": ca.pem,
            "device.crt": issued.pem,
        }
        if key is not None:
            files["device.key"] = authority.private_pem(key)
        atomic.write_file(target, _archive(files), private=True)
        device = Device(issued.key, (issued.serial,), issued.expires)
        registry.write(folder.registry, registry_.with_device(name, device))
    return target


def renew(
    folder: Folder, id: str, *, out: Path | None = None, days: int = authority.DEVICE_DAYS
) -> Path:
    """Write a new certificate for the device's key and return its path, by default ID.crt.

    It replaces the old certificate on the device and is valid for `days`. Raises ConfigError if the
    device is not enrolled or was revoked, and if the folder cannot be read or another command uses
    it.
    """
    with _books(folder) as registry_:
        device = _device(registry_, id)
        if device.revoked:
            raise ConfigError(f"{id} was revoked; enroll the device under another id")
        key = authority.public_key(device.key)
        issued = authority.certify_device(_authority(folder), key, id, days)
        # Record the serial first, so that a later revocation covers this certificate in any case.
        renewed = replace(device, serials=(*device.serials, issued.serial), expires=issued.expires)
        registry.write(folder.registry, registry_.with_device(id, renewed))
        target = out or Path(f"{id}.crt")
        atomic.write_file(target, issued.pem)
    return target


def revoke(folder: Folder, id: str) -> None:
    """Revoke a device: at the coordinator, then at the broker.

    Raises ConfigError if the device is not enrolled, or if the folder cannot be read or another
    command uses it; BrokerError if the broker cannot be made to read its files again.
    """
    with _books(folder) as registry_:
        without = registry_.with_device(id, replace(_device(registry_, id), revoked=True))
        registry.write(folder.registry, without)
        path = folder.broker / "crl.pem"
        serials = [serial for name in without.revoked for serial in without.devices[name].serials]
        newer = authority.revocation_list(_authority(folder), serials, path.read_bytes())
        atomic.write_file(path, newer)
        atomic.write_file(
            folder.broker / "fleet.acl", access_list(without.fleet, without.revoked).encode()
        )
        try:
            mosquitto.reload(registry_.reload, folder.broker / "mosquitto.conf")
        except BrokerError as error:
            raise BrokerError(
                f"{id} is revoked at the coordinator, but not yet at the broker: {error}; copy "
                f"crl.pem and fleet.acl from {folder.broker} to the broker's host and send the "
                "broker SIGHUP"
            ) from error


@contextlib.contextmanager
def _books(folder: Folder) -> Iterator[Registry]:
    """Yield the registry, locked against other commands until the `with` block ends."""
    # Read before locking, so that a wrong folder gives an error and no lock file is left in it.
    registry.read(folder.registry)
    with contextlib.closing(lock_file(folder.path / ".lock", str(folder.path))):
        yield registry.read(folder.registry)


def _check_new(registry_: Registry, id: str, key: str) -> None:
    try:
        check_id(id, "id")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if id == COORDINATOR:
        raise ConfigError(f"the id {COORDINATOR!r} is reserved; choose another id")
    known = registry_.devices.get(id)
    if known is not None and known.revoked:
        raise ConfigError(
            f"{id} was revoked, and the revoked device may still be connected; choose another id"
        )
    if known is not None:
        raise ConfigError(
            f"{id} is already enrolled; renew its certificate with `fedclip-edge renew`, or revoke "
            "it and choose another id"
        )
    holders = {device.key: name for name, device in registry_.devices.items()}
    holder = COORDINATOR if key == registry_.coordinator else holders.get(key)
    if holder is not None:
        raise ConfigError(
            f"the signing request's key already belongs to {holder}; create a new key for each "
            "device"
        )


def _device(registry_: Registry, id: str) -> Device:
    if id not in registry_.devices:
        raise ConfigError(
            f"{id!r} is not enrolled in the fleet {registry_.fleet!r}; check the id in devices.json"
        )
    return registry_.devices[id]


def _authority(folder: Folder) -> Authority:
    try:
        certificate = (folder.path / "ca.crt").read_bytes()
        key = (folder.path / "ca.key").read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be read: {error.strerror}; this command needs the "
            "authority's files ca.crt and ca.key"
        ) from error
    return authority.load(certificate, key)


def _agent_toml(registry_: Registry, id: str) -> str:
    words = {
        "id": id,
        "fleet": registry_.fleet,
        "coordinator": registry_.coordinator,
        "host": registry_.host,
    }
    # A JSON string is also a TOML string.
    quoted = {name: json.dumps(word) for name, word in words.items()}
    return _AGENT.format(port=registry_.port, **quoted)


def _archive(files: Mapping[str, bytes]) -> bytes:
    """A tar file in which private keys are readable only by their owner."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600 if name.endswith(".key") else 0o644
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
