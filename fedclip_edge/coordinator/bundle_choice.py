"""The bundle of a run: the one that fleet.toml names, or a later one that was published.

    JOURNAL.bundles/SERIAL-HASH/     a published bundle, next to the journal

Laws:
- Publishing changes nothing in the run that is under way, nor in the bundle that fleet.toml names.
  The next run uses the new classes.
- A restarted coordinator goes on with the bundle that its newest run began with.
- A published bundle has the encoder of the one that fleet.toml names, and other classes. Another
  encoder in fleet.toml makes an end of what was published before.
- A backup leaves out the files that a published bundle shares with the one that fleet.toml names,
  because the encoder is large. After a restore they are taken from there again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator.journal_tables import Run
from fedclip_edge.errors import BundleError, ConfigError
from fedclip_edge.pki.bundle_signature import SIGNATURE, read_signature, serial_in
from fedclip_edge.storage.atomic import beside
from fedclip_edge.vision.bundle import Bundle, read_bundle
from fedclip_edge.vision.manifest import FILES, MANIFEST, read_manifest


@dataclass(frozen=True)
class Published:
    """A published bundle, and how its classes differ from those of the run before."""

    serial: int
    classes: int
    added: tuple[str, ...]
    removed: tuple[str, ...]


def published_folder(journal: Path) -> Path:
    """The folder of the published bundles."""
    return journal.with_suffix(".bundles")


def choose_bundle(config: FleetConfig, run: Run | None) -> Bundle:
    """The bundle of a run in the journal; with None, the one for the next run, which is the newest.

    Raises BundleError if the bundle that fleet.toml names is missing or damaged.
    """
    named = read_bundle(config.bundle)
    published = [one for one in _published(config.journal, named) if _fits(one, named)]
    if run is None:
        return max([named, *published], key=lambda one: serial_in(one.folder))
    wanted = run.encoder_id, run.classes_digest
    for one in (named, *published):
        if (one.manifest.encoder_id, one.classes.digest) == wanted:
            return one
    return named


def publish_classes(
    config: FleetConfig,
    folder: Path,
    now_used: Bundle,
    export_key: str,
    keeps: Collection[Path] = (),
) -> Published:
    """Publish the bundle in `folder`, which has the encoder of the bundle `now_used`.

    It must be signed with `export_key` (64 hex digits; empty: with any key), and be newer than any
    before. Published bundles other than these two and those in the folders `keeps` are deleted.
    Raises ConfigError if it cannot be used, OSError on a disk error.
    """
    try:
        bundle, signed = read_bundle(folder), read_signature(folder)
        if signed is None:
            raise ConfigError(
                f"{folder} is not signed, so no box would accept it; sign it with `fedclip-edge "
                "bundle sign`"
            )
        if export_key:
            signed.check_signer(export_key, str(folder))
    except BundleError as error:
        raise ConfigError(str(error)) from None
    if not _fits(bundle, now_used):
        raise ConfigError(
            f"{folder} has another encoder than {now_used.folder}, and only classes can be "
            "published; for another encoder, name the bundle in fleet.toml"
        )
    before = list(_published(config.journal, now_used))
    last = max(serial_in(one.folder) for one in (now_used, *before))
    if signed.serial <= last:
        raise ConfigError(
            f"{folder} has the serial number {signed.serial}, and the newest bundle so far has "
            f"{last}; sign it again with `fedclip-edge bundle sign`"
        )
    target = published_folder(config.journal) / f"{signed.serial}-{signed.manifest[:16]}"
    with beside(target) as new:
        for name in (*FILES, MANIFEST, SIGNATURE):
            _link(folder / name, new / name)
        read_bundle(new)
        new.rename(target)
    for other in before:  # the newest one, that of the run, and those that are kept stay
        if other.folder not in (now_used.folder, *keeps):
            shutil.rmtree(other.folder, ignore_errors=True)
    old, names = now_used.classes.names, bundle.classes.names
    return Published(
        serial=signed.serial,
        classes=len(names),
        added=tuple(name for name in names if name not in old),
        removed=tuple(name for name in old if name not in names),
    )


def files_to_back_up(config: FleetConfig) -> list[Path]:
    """The files of the published bundles that the bundle in fleet.toml does not have too.

    Raises BundleError if there is a published bundle, and the one in fleet.toml cannot be read.
    """
    if not _folders(config.journal):
        return []
    named = read_bundle(config.bundle)
    return [
        one.folder / name
        for one in _published(config.journal, named)
        if _fits(one, named)
        for name in (*FILES, MANIFEST, SIGNATURE)
        if name not in FILES or one.manifest.files[name] != named.manifest.files[name]
    ]


def _published(journal: Path, known: Bundle) -> Iterator[Bundle]:
    """Every published bundle that can be read, oldest first.

    Files that are missing since a restore are taken from the bundle `known`, if it has them.
    """
    for folder in _folders(journal):
        try:
            _complete(folder, known)
            yield read_bundle(folder)
        except (BundleError, OSError) as error:
            log.event("published_bundle_damaged", reason=str(error))


def _folders(journal: Path) -> list[Path]:
    return sorted(published_folder(journal).glob("[0-9]*-*"))


def _complete(folder: Path, known: Bundle) -> None:
    path = folder / MANIFEST
    for name, sha256 in read_manifest(path.read_bytes(), str(path)).files.items():
        if sha256 == known.manifest.files[name] and not (folder / name).exists():
            _link(known.folder / name, folder / name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another file system
        copy = target.with_name(f".{target.name}")
        shutil.copyfile(source, copy)
        copy.rename(target)


def _fits(one: Bundle, other: Bundle) -> bool:
    return one.manifest.encoder_id == other.manifest.encoder_id
