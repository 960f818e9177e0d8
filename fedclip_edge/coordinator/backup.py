"""Backups of a coordinator: one tar file with everything that a new host needs to continue.

    backup.json       fleet, time, versions, run and bundle; SHA-256 of every other member
    fleet.toml        as it was, with the paths that the other members have after a restore
    journal.sqlite    the state of one moment
    journal.key       the coordinator's key, without enrolment
    coordinator/      registry, certificates and key
    site/             instead of coordinator/, if fleet.toml uses the operator's folder: all of it,
                      with the authority's key
    journal.bundles/  the classes that were published since, without the encoder
    models/           the models of finished runs

The bundle is not in it: it is large, and the devices have copies. backup.json names it. The
published bundles get their encoder from it after a restore (bundle_choice.py).

Laws:
- A backup is made while the coordinator runs, and is one state of the journal. The journal's copy
  is checked before the backup gets its name.
- Only its owner can read it: it contains keys.
- Nothing is overwritten but an earlier backup of the same fleet, and nothing is restored from a
  file that is damaged.
- A restored journal may know less than the devices do. Their hellos say so, and the coordinator
  takes a later epoch (`Coordinator`).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedclip_edge import __version__
from fedclip_edge.config.fleet import FleetConfig, load_fleet
from fedclip_edge.coordinator.backup_file import (
    BUNDLES,
    CONTENTS,
    FORMAT,
    Backup,
    opened,
    pack,
    read_contents,
    sha256_of,
)
from fedclip_edge.coordinator.bundle_choice import files_to_back_up, published_folder
from fedclip_edge.coordinator.journal import open_journal
from fedclip_edge.coordinator.journal_tables import SCHEMA
from fedclip_edge.errors import ConfigError
from fedclip_edge.learning.run_steps import exchanges
from fedclip_edge.pki.site import Folder
from fedclip_edge.storage import atomic
from fedclip_edge.storage.text_file import read_text
from fedclip_edge.storage.toml_file import parse_toml, replace_strings
from fedclip_edge.vision.bundle import read_bundle

_FLEET, _JOURNAL = "fleet.toml", "journal.sqlite"


@dataclass(frozen=True)
class _Copied:
    """The newest run in a copied journal; without one, the ids are those of the bundle."""

    encoder_id: str
    classes_digest: str
    run: str = ""
    closed: int = 0
    rounds: int = 0


def make_backup(config_path: Path, target: Path) -> Backup:
    """Write a backup of the coordinator that `config_path` (fleet.toml) describes to `target`.

    Raises ConfigError if a file of the fleet is missing or wrong, or if `target` exists and is no
    backup of this fleet; BundleError if the bundle cannot be read; JournalError if the journal
    cannot be read or is damaged; OSError if a file cannot be read or the backup not be written.
    """
    config = load_fleet(config_path)
    if not config.journal.is_file():
        raise ConfigError(
            f"there is no journal {config.journal} to back up; `fedclip-edge serve` creates it"
        )
    if target.exists():
        _check_replaceable(target, config.fleet)
    with atomic.beside(target) as beside:
        content = beside / "content"
        content.mkdir(0o700)
        copied = _copy_journal(config, content / _JOURNAL)
        site, moved = _copy_files(config, content)
        text = _moved_toml(config_path, config, moved)
        _copy_bytes(text.encode(), content / _FLEET, config_path)
        files = {
            path.relative_to(content).as_posix(): sha256_of(path)
            for path in sorted(content.rglob("*"))
            if path.is_file()
        }
        made = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
        backup = Backup(
            format=FORMAT,
            program=__version__,
            journal=SCHEMA.version,
            fleet=config.fleet,
            made=made,
            bundle=str(config.bundle),
            site="" if site is None else str(site),
            files=files,
            **vars(copied),
        )
        described = json.dumps(asdict(backup), indent=1).encode()
        _copy_bytes(described, content / CONTENTS, config_path)
        pack(content, (CONTENTS, *files), beside / target.name)
        atomic.put(beside / target.name, target)
    return backup


def _copy_journal(config: FleetConfig, target: Path) -> _Copied:
    """Copy the journal to `target`, and check the copy."""
    with contextlib.closing(open_journal(config.journal)) as journal:
        journal.copy(target)
    target.chmod(stat.S_IMODE(config.journal.stat().st_mode))
    with contextlib.closing(open_journal(target)) as copied:
        copied.check()
        run = copied.runs.last()
        if run is None:
            bundle = read_bundle(config.bundle)
            return _Copied(bundle.manifest.encoder_id, bundle.classes.digest)
        closed = copied.rounds.closed(run.id)
    return _Copied(run.encoder_id, run.classes_digest, run.id, closed, exchanges(run.plan))


def _copy_files(config: FleetConfig, content: Path) -> tuple[Path | None, dict[str, str]]:
    """Copy every other file of the coordinator into the folder `content`.

    Returns the operator's folder, if it is copied, and the new path of each setting by its name.
    """
    broker = config.broker
    used = {
        "registry": config.registry,
        "broker.ca": broker.ca,
        "broker.certificate": broker.certificate,
        "broker.key": broker.key,
    }
    site = _site_of(config.registry)
    copied: dict[Path, str] = {}
    if site is not None:
        for path in sorted(site.rglob("*")):
            if path.is_file() and _belongs(path, site, config.journal):
                copied[path.resolve()] = f"site/{path.relative_to(site).as_posix()}"
    moved = {"journal": _JOURNAL}
    for setting, known in used.items():
        if known is not None:
            name = copied.setdefault(known.resolve(), f"coordinator/{known.name}")
            moved[setting] = name
    own_key = config.journal.with_suffix(".key")
    if broker.key is None and own_key.is_file():
        copied[own_key.resolve()] = "journal.key"
    for path in sorted((config.journal.parent / "models").glob("*.safetensors")):
        copied[path.resolve()] = f"models/{path.name}"
    for path in files_to_back_up(config):
        copied[path.resolve()] = f"{BUNDLES}/{path.parent.name}/{path.name}"
    if len(set(copied.values())) < len(copied):
        raise ConfigError(
            "two files of the coordinator have the same name in different folders; give them "
            f"different names: {', '.join(map(str, copied))}"
        )
    for path, name in copied.items():
        try:
            _copy_bytes(path.read_bytes(), content / name, path)
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read: {error.strerror}; correct its path in fleet.toml, or let "
                "this user read it"
            ) from error
    return site, moved


def _site_of(registry_path: Path | None) -> Path | None:
    """The operator's folder, if the registry is the one in it and the authority's key is there."""
    if registry_path is None:
        return None
    path = registry_path.resolve()
    folder = Folder(path.parent.parent)
    is_there = folder.registry == path and (folder.path / "ca.key").is_file()
    return folder.path if is_there else None


def _belongs(path: Path, site: Path, journal: Path) -> bool:
    """True for a file of the operator's folder that a backup holds.

    Not for locks and files that are being written, for archives of devices and earlier backups, and
    for the journal and the published bundles, which have a place of their own in it.
    """
    is_hidden = any(part.startswith(".") for part in path.relative_to(site).parts)
    is_journal = path.parent == journal.parent and path.name.startswith(journal.name)
    is_published = published_folder(journal) in path.parents
    return not (is_hidden or is_journal or is_published) and path.suffix != ".tar"


def _moved_toml(path: Path, config: FleetConfig, moved: Mapping[str, str]) -> str:
    """The text of fleet.toml with the new paths.

    Paths of what is not in the backup, the bundle and the trainer, become absolute.
    """
    text = read_text(path)
    known = dict(moved)
    known["bundle"] = str(config.bundle)
    if config.trainer is not None:
        known["trainer.config"] = str(config.trainer.config)
    wanted = {tuple(name.split(".")): value for name, value in known.items()}
    changed = replace_strings(text, wanted)
    table = parse_toml(changed, str(path))
    for (*outer, key), value in wanted.items():
        inner: Any = table
        for one in outer:
            inner = inner.get(one, {})
        if inner.get(key, _JOURNAL) != value:
            raise ConfigError(
                f"{path}: the path {'.'.join((*outer, key))} cannot be replaced for the backup; "
                f'write it on a line of its own: {key} = "PATH"'
            )
    return changed


def _check_replaceable(target: Path, fleet: str) -> None:
    try:
        with opened(target) as tar:
            is_ours = read_contents(tar, target).fleet == fleet
    except ConfigError:
        is_ours = False
    if not is_ours:
        raise ConfigError(
            f"{target} exists and is not a backup of the fleet {fleet!r}; it was not changed; name "
            "another file"
        )


def _copy_bytes(data: bytes, target: Path, like: Path) -> None:
    """Write a new file with the mode of the file `like`; its folder is private until the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    target.chmod(stat.S_IMODE(like.stat().st_mode))
