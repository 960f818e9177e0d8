"""A new authority for an enrolled fleet: both are valid until every box has the new one's files.

The overlap is that of RFC 4210, section 4.4:

    the broker  accepts the certificates of both authorities; shows one of the new authority, with
                the new key certified by the earlier one
    a box with the earlier files  trusts the earlier authority, and through it the broker
    a box with the new files      trusts the new authority alone

Laws:
- From the first step on, every certificate is issued by the new authority. So a box that was
  enrolled or renewed since then needs nothing more.
- No box is cut off before `finish`, and `finish` refuses to cut off a box unless it is told to.
- A command that was killed is completed by the next one: it makes no further authority.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedclip_edge.errors import ConfigError
from fedclip_edge.pki import authority, registry
from fedclip_edge.pki.registry import Registry
from fedclip_edge.pki.relocation import read_broker
from fedclip_edge.pki.revocation import write_lists
from fedclip_edge.pki.site import (
    Folder,
    certify_broker,
    open_registry,
    read_authority,
    read_earlier_authority,
)
from fedclip_edge.records import COORDINATOR
from fedclip_edge.storage import atomic

_NAMED = 10  # devices in one message


@dataclass(frozen=True)
class Replaced:
    """A step of the replacement that is done."""

    registry: Registry
    cut_off: tuple[str, ...] = ()  # ids that the broker refuses from now on


def begin(folder: Folder) -> Replaced:
    """Make a new authority, and the files with which broker and coordinator accept both.

    Raises ConfigError if the earlier replacement is not finished, if the folder cannot be read, or
    if another command uses it; OSError if a file cannot be written.
    """
    with open_registry(folder) as before:
        if _ended(folder).exists():
            raise ConfigError(_unfinished(folder))
        if not folder.earlier.is_dir():
            old, new = read_authority(folder), authority.create_authority(before.fleet)
            files = {
                "ca.crt": old.pem,
                "ca.key": old.key_pem,
                "next.crt": new.pem,
                "next.key": new.key_pem,
            }
            private = [name for name in files if name.endswith(".key")]
            atomic.make_folder(folder.earlier, files, private)
        if not (folder.earlier / "next.key").exists():
            raise ConfigError(_unfinished(folder))
        certificate, key = (folder.earlier / f"next.{kind}" for kind in ("crt", "key"))
        atomic.write_file(folder.path / "ca.key", key.read_bytes(), private=True)
        atomic.write_file(folder.path / "ca.crt", certificate.read_bytes())
        known = replace(before, to_renew=tuple(sorted(set(before.devices) - set(before.revoked))))
        registry.write(folder.registry, known)
        _write_files(folder, known)
        certificate.unlink()
        key.unlink()
    return Replaced(known)


def finish(folder: Folder, *, cut_off: bool = False) -> Replaced:
    """Let the broker accept only what the new authority issued, and delete the earlier one.

    With `cut_off`, devices may be left that have no certificate of the new authority; the broker
    then refuses them. Raises ConfigError if there are such devices and `cut_off` is false, if
    `begin` was not run, or if the folder cannot be read or another command uses it; OSError if a
    file cannot be written.
    """
    with open_registry(folder) as before:
        left = tuple(sorted(set(before.to_renew) - set(before.revoked)))
        if not _ended(folder).exists():
            _check_finishable(folder, () if cut_off else left)
            folder.earlier.rename(_ended(folder))
        known = replace(before, to_renew=())
        _write_files(folder, known)
        registry.write(folder.registry, known)
        shutil.rmtree(_ended(folder))
    return Replaced(known, left)


def _ended(folder: Folder) -> Path:
    """The place of the earlier authority while `finish` works; nothing reads it."""
    return folder.path / ".earlier"


def _unfinished(folder: Folder) -> str:
    return (
        f"the authority in {folder.path} is being replaced already; renew the devices, then run "
        "`fedclip-edge broker replace-authority --finish`"
    )


def _check_finishable(folder: Folder, left: Sequence[str]) -> None:
    """Raise ConfigError if there is nothing to finish, or if these devices would be cut off."""
    if not folder.earlier.is_dir() or (folder.earlier / "next.key").exists():
        raise ConfigError(
            f"there is no new authority in {folder.path} to finish with; run `fedclip-edge "
            "broker replace-authority` without --finish first"
        )
    if left:
        more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
        raise ConfigError(
            f"{', '.join(left[:_NAMED])}{more}: no certificate of the new authority yet; run "
            "`fedclip-edge renew ID` for each and copy its files to the box, or add --cut-off to "
            "refuse them from now on"
        )


def _write_files(folder: Folder, known: Registry) -> None:
    """Write the broker's and the coordinator's files for the authorities in the folder."""
    ca, earlier = read_authority(folder), read_earlier_authority(folder)
    broker, coordinator = folder.broker, folder.coordinator
    names, public = read_broker(broker / "broker.crt")
    atomic.write_file(broker / "broker.crt", certify_broker(folder, public, names))
    atomic.write_file(broker / "ca.crt", ca.pem + (b"" if earlier is None else earlier.pem))
    write_lists(folder, known)
    key = authority.public_key(known.coordinator)
    issued = authority.certify_coordinator(ca, key, COORDINATOR)
    atomic.write_file(coordinator / "coordinator.crt", issued.pem)
    atomic.write_file(coordinator / "ca.crt", ca.pem)
