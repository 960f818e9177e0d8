"""Enrolment of devices, new keys and certificates for them, and their revocation.

Laws:
- A device's private key is kept only in its archive, which only its owner can read. With a signing
  request it never leaves the box.
- An archive is written before its device is in the registry. A device whose archive could not be
  written is not enrolled. If the registry cannot be written, the new archives are deleted.
- A revocation is written to the registry first, so that the coordinator refuses the device even if
  a later step fails. A repeated `revoke` does every step again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedclip_edge.errors import ConfigError
from fedclip_edge.pki import authority, registry
from fedclip_edge.pki.authority import Authority
from fedclip_edge.pki.box import Box, agent_toml, archive
from fedclip_edge.pki.registry import Device, Registry
from fedclip_edge.pki.revocation import Probe, reload_broker, write_lists
from fedclip_edge.pki.site import Folder, open_registry, read_authority
from fedclip_edge.records import COORDINATOR
from fedclip_edge.storage import atomic


def enroll(
    folder: Folder,
    id: str = "",
    *,
    request: bytes | None = None,
    out: Path | None = None,
    days: int = authority.DEVICE_DAYS,
    domain: str = "",
    pictures: str = "",
) -> Path:
    """Enroll a device and return the path of its archive (tar), by default ID.tar.

    The archive holds agent.toml, the device's certificate and key, and the authority's certificate.
    With a signing `request` (PEM) the id is the name in it, and the key stays where it was made and
    is not in the archive. The certificate is valid for `days`. `domain` and `pictures` (a folder on
    the box) are written into agent.toml.

    Raises ConfigError if the id is malformed, reserved, enrolled or revoked; if the domain or the
    folder is malformed; if the request is malformed or names another id; if its key belongs to
    another device or the coordinator; if the archive exists; or if the folder cannot be read or
    another command uses it.
    """
    name, key, public = _key_of(id, request)
    with open_registry(folder) as registry_:
        box = _box(name, domain, pictures)
        _check_new(registry_, name)
        _check_key(registry_, authority.public_hex(public))
        target = _new_file(out or Path(f"{name}.tar"))
        made = _enrol(read_authority(folder), registry_, box, public, key, days)
        atomic.write_file(target, made.archive, private=True)
        with _deleted_on_error(target):
            registry.write(folder.registry, registry_.with_device(name, made.device))
    return target


@dataclass(frozen=True)
class Reissued:
    """A new key for an enrolled device."""

    id: str
    archive: Path
    probe: Probe  # of the new revocation list
    done: str  # what is done, for a message that the broker does not know of it


def enroll_again(
    folder: Folder,
    id: str = "",
    *,
    request: bytes | None = None,
    out: Path | None = None,
    days: int = authority.DEVICE_DAYS,
    domain: str | None = None,
    pictures: str | None = None,
) -> Reissued:
    """Give an enrolled device a new key, and revoke all certificates of its earlier key.

    For a device whose archive is lost. Its id stays the same, and its domain and folder of pictures
    too unless `domain` or `pictures` is given.

    Raises ConfigError as `enroll` does, and if the device is not enrolled or was revoked;
    BrokerError if the broker cannot be made to read its files again.
    """
    name, key, public = _key_of(id, request)
    with open_registry(folder) as registry_:
        if name not in registry_.devices:
            raise ConfigError(
                f"{name!r} is not enrolled in the fleet {registry_.fleet!r}; correct the id, or "
                "leave out --again to enroll a new device"
            )
        old = registry_.devices[name]
        if old.revoked:
            raise ConfigError(
                f"{name} was revoked, which is permanent also with --again; enroll the box under "
                "another id"
            )
        hex_key = authority.public_hex(public)
        if hex_key == old.key:
            raise ConfigError(
                f"the signing request has the key that {name} was enrolled with; renew its "
                "certificate with `fedclip-edge renew`, or create a new key"
            )
        _check_key(registry_, hex_key)
        box = _box(
            name,
            old.domain if domain is None else domain,
            old.pictures if pictures is None else pictures,
        )
        target = _new_file(out or Path(f"{name}.tar"))
        made = _enrol(read_authority(folder), registry_, box, public, key, days)
        atomic.write_file(target, made.archive, private=True)
        device = replace(made.device, replaced=(*old.replaced, *old.serials))
        changed = registry_.with_device(name, device)
        with _deleted_on_error(target):
            registry.write(folder.registry, changed)
        probe = write_lists(folder, changed)
        done = f"{target} is written, and the earlier key of {name} is revoked at the coordinator"
        reload_broker(changed, folder.broker, done)
    return Reissued(name, target, probe, done)


@dataclass(frozen=True)
class Enrolled:
    """The result of `enroll_all`, by the ids in the list, in its order."""

    archives: tuple[Path, ...]  # of the devices that are new
    known: tuple[str, ...]  # enrolled before, not changed
    differing: tuple[str, ...]  # those of `known` with another domain or folder in the list
    revoked: tuple[str, ...]  # not enrolled, because they were revoked


def enroll_all(
    folder: Folder,
    boxes: Sequence[Box],
    *,
    out: Path | None = None,
    days: int = authority.DEVICE_DAYS,
) -> Enrolled:
    """Enroll all boxes that are not enrolled yet; their archives go into the folder `out`.

    `boxes` have different ids. `out` is the current folder by default, and is created if it does
    not exist. Either all archives are written, or none.

    Raises ConfigError, without a change, if an archive exists, if `out` is not a folder, or if the
    folder of the fleet cannot be read or another command uses it.
    """
    place = out or Path()
    if place.exists() and not place.is_dir():
        raise ConfigError(f"{place} is not a folder; name the folder of the archives with --out")
    with open_registry(folder) as registry_:
        known = [box for box in boxes if box.id in registry_.devices]
        gone = set(registry_.revoked)
        new = [box for box in boxes if box.id not in registry_.devices]
        ca, archives = read_authority(folder), {}
        with_new = registry_
        for box in new:
            _new_file(place / f"{box.id}.tar")
            key = authority.new_key()
            made = _enrol(ca, registry_, box, key.public_key(), key, days)
            archives[f"{box.id}.tar"] = made.archive
            with_new = with_new.with_device(box.id, made.device)
        if archives:
            place.mkdir(parents=True, exist_ok=True)
            atomic.write_new_files(place, archives)
            with _deleted_on_error(*(place / name for name in archives)):
                registry.write(folder.registry, with_new)
    kept = [box for box in known if box.id not in gone]
    return Enrolled(
        archives=tuple(place / name for name in archives),
        known=tuple(box.id for box in kept),
        differing=tuple(box.id for box in kept if _differs(box, registry_.devices[box.id])),
        revoked=tuple(box.id for box in known if box.id in gone),
    )


def renew(
    folder: Folder, id: str, *, out: Path | None = None, days: int = authority.DEVICE_DAYS
) -> Path:
    """Write a new certificate for the device's key and return its path, by default ID.crt.

    It replaces the old certificate on the device and is valid for `days`. Raises ConfigError if the
    device is not enrolled or was revoked, and if the folder cannot be read or another command uses
    it.
    """
    with open_registry(folder) as registry_:
        device = _device(registry_, id)
        if device.revoked:
            raise ConfigError(f"{id} was revoked; enroll the device under another id")
        key = authority.public_key(device.key)
        issued = authority.certify_device(read_authority(folder), key, id, days)
        # Record the serial first, so that a later revocation covers this certificate in any case.
        renewed = replace(device, serials=(*device.serials, issued.serial), expires=issued.expires)
        registry.write(folder.registry, registry_.with_device(id, renewed))
        target = out or Path(f"{id}.crt")
        atomic.write_file(target, issued.pem)
    return target


def revoke(folder: Folder, id: str) -> Probe:
    """Revoke a device: at the coordinator, then at the broker.

    Returns the probe of the new revocation list (revocation.py). Raises ConfigError if the device
    is not enrolled, or if the folder cannot be read or another command uses it; BrokerError if the
    broker cannot be made to read its files again.
    """
    with open_registry(folder) as registry_:
        without = registry_.with_device(id, replace(_device(registry_, id), revoked=True))
        registry.write(folder.registry, without)
        probe = write_lists(folder, without)
        reload_broker(without, folder.broker, f"{id} is revoked at the coordinator")
    return probe


@dataclass(frozen=True)
class _Made:
    """The archive of a device and its entry in the registry."""

    archive: bytes
    device: Device


def _enrol(
    ca: Authority,
    registry_: Registry,
    box: Box,
    public: Ed25519PublicKey,
    key: Ed25519PrivateKey | None,
    days: int,
) -> _Made:
    """Certify a box's key. Without a private `key`, the archive contains none."""
    issued = authority.certify_device(ca, public, box.id, days)
    files = {
        "agent.toml": agent_toml(registry_, box).encode(),
        "ca.crt": ca.pem,
        "device.crt": issued.pem,
    }
    if key is not None:
        files["device.key"] = authority.private_pem(key)
    device = Device(
        issued.key, (issued.serial,), issued.expires, domain=box.domain, pictures=box.pictures
    )
    return _Made(archive(files), device)


def _key_of(
    id: str, request: bytes | None
) -> tuple[str, Ed25519PrivateKey | None, Ed25519PublicKey]:
    """The device's id and key: a new key, or the public one in the signing request."""
    if request is None:
        key = authority.new_key()
        return id, key, key.public_key()
    name, public = authority.read_request(request)
    if id not in ("", name):
        raise ConfigError(
            f"the signing request is for {name!r}, not for {id!r}; correct the id or the request"
        )
    return name, None, public


def _box(id: str, domain: str, pictures: str) -> Box:
    try:
        return Box(id, domain, pictures)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _differs(box: Box, known: Device) -> bool:
    """True if the list gives a box another domain or folder than the box was enrolled with."""
    return (box.domain, box.pictures) != (known.domain, known.pictures)


def _new_file(path: Path) -> Path:
    if path.exists():
        raise ConfigError(f"{path} already exists; move it away, or name another place with --out")
    return path


@contextmanager
def _deleted_on_error(*archives: Path) -> Iterator[None]:
    """Delete these archives if the registry cannot be written: their keys are in no registry."""
    try:
        yield
    except OSError:
        for path in archives:
            path.unlink(missing_ok=True)
        raise


def _check_new(registry_: Registry, id: str) -> None:
    known = registry_.devices.get(id)
    if known is not None and known.revoked:
        raise ConfigError(
            f"{id} was revoked, and the revoked device may still be connected; choose another id"
        )
    if known is not None:
        raise ConfigError(
            f"{id} is already enrolled; renew its certificate with `fedclip-edge renew {id}`, or, "
            f"if its key is lost, give it a new one with `fedclip-edge enroll --again {id}`"
        )


def _check_key(registry_: Registry, key: str) -> None:
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
