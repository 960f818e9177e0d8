"""The registry, devices.json: the enrolled devices of a fleet, their keys, and the revoked ids.

It contains no secret. A coordinator that has a registry accepts only the keys in it. It reads the
file again when it changes, so that a revocation or a new key takes effect at once.

Law: a revoked id is never enrolled again, because the revoked device may still be connected.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedclip_edge.config.reading import read_table
from fedclip_edge.errors import ConfigError
from fedclip_edge.protocol.hand_over import HandOver
from fedclip_edge.records import check_id, check_sha256
from fedclip_edge.storage import atomic
from fedclip_edge.storage.text_file import read_json


@dataclass(frozen=True)
class Device:
    """One enrolled device."""

    key: str  # public key (Ed25519) of its signatures, 64 hex digits
    serials: tuple[str, ...]  # serial numbers of all certificates of this key, hex
    expires: str  # last day of the newest certificate, ISO date
    revoked: bool = False
    replaced: tuple[str, ...] = ()  # serial numbers of the certificates of earlier keys, hex
    domain: str = ""  # as in its agent.toml
    pictures: str = ""  # folder of its pictures, as in its agent.toml; empty: the default

    def __post_init__(self) -> None:
        check_sha256(self.key, "key")
        dt.date.fromisoformat(self.expires)

    @property
    def dead_serials(self) -> tuple[str, ...]:
        """Serial numbers of all certificates that no broker may accept, hex."""
        return (*self.replaced, *(self.serials if self.revoked else ()))


@dataclass(frozen=True)
class Registry:
    """One fleet's devices, and the address of its broker."""

    fleet: str
    host: str
    port: int
    coordinator: str  # the coordinator's public key, 64 hex digits
    reload: str = ""  # the command that makes the broker read its files again
    devices: Mapping[str, Device] = field(default_factory=dict)
    # public key that signs bundles, 64 hex digits; empty: devices fetch none
    export_key: str = ""
    hand_overs: tuple[HandOver, ...] = ()  # from earlier keys of the coordinator, oldest first
    moved: bool = False  # the broker was at another address before; devices are told the new one
    retired: tuple[str, ...] = ()  # serial numbers of the certificates of those keys, hex
    # ids whose certificates are of the earlier authority, while it is being replaced
    to_renew: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_id(self.fleet, "fleet")
        check_sha256(self.coordinator, "coordinator")
        if self.export_key:
            check_sha256(self.export_key, "export_key")

    def refusal(self, device: str, key: str) -> str | None:
        """The reason to refuse this device with this key (64 hex digits); None to accept it."""
        known = self.devices.get(device)
        if known is None:
            return "it is not enrolled; enroll it with `fedclip-edge enroll`"
        if known.revoked:
            return "it was revoked"
        if known.key != key:
            return "its key is not the one that it was enrolled with"
        return None

    @property
    def dead_serials(self) -> tuple[str, ...]:
        """Serial numbers of all certificates that no broker may accept, hex."""
        devices = (serial for device in self.devices.values() for serial in device.dead_serials)
        return (*self.retired, *devices)

    @property
    def revoked(self) -> tuple[str, ...]:
        """The ids that were revoked, sorted."""
        return tuple(sorted(name for name, device in self.devices.items() if device.revoked))

    def with_device(self, id: str, device: Device) -> Registry:
        """A copy of the registry with this device added or replaced; it is not in `to_renew`."""
        left = tuple(name for name in self.to_renew if name != id)
        return replace(self, devices={**self.devices, id: device}, to_renew=left)


def read(path: Path) -> Registry:
    """The registry in the file `path`.

    Raises ConfigError if the file cannot be read or is not a valid registry.
    """
    try:
        table = read_json(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}; `fedclip-edge broker init` creates it"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{error} (or restore the registry of devices from a backup)") from None
    if not isinstance(table, dict):
        raise ConfigError(f"{path} is not a registry of devices; restore it from a backup")
    return read_table(Registry, table, str(path))


def pack(registry: Registry) -> bytes:
    """The registry as the bytes of its file."""
    return (json.dumps(dataclasses.asdict(registry), indent=1) + "\n").encode()


def write(path: Path, registry: Registry) -> None:
    """Replace the file `path` with this registry; raises OSError if it cannot be written."""
    atomic.write_file(path, pack(registry))
