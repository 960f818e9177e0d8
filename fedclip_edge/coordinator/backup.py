"""Backups of a coordinator: one tar file with everything that a new host needs to continue.

    backup.json       fleet, time, versions, run and bundle; SHA-256 of every other member
    fleet.toml        as it was, with the paths that the other members have after a restore
    journal.sqlite    the state of one moment
    journal.key       the coordinator's key, without enrolment
    coordinator/      registry, certificates and key
    site/             instead of coordinator/, if fleet.toml uses the operator's folder: all of it,
                      with the authority's key
    models/           the models of finished runs

The bundle is not in it: it is large, and the devices have copies. backup.json names it.

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
import errno
import hashlib
import json
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fedclip_edge import __version__
from fedclip_edge.config import FleetConfig, load_fleet, read_table
from fedclip_edge.coordinator.journal import open_journal
from fedclip_edge.coordinator.journal_tables import SCHEMA
from fedclip_edge.errors import ConfigError
from fedclip_edge.learning.schedule import exchanges
from fedclip_edge.pki.site import Folder
from fedclip_edge.storage import atomic
from fedclip_edge.storage.text_file import read_text
from fedclip_edge.storage.toml_file import parse_toml, replace_strings
from fedclip_edge.vision.bundle import read_bundle

_FORMAT = 1
_CONTENTS = "backup.json"
_FLEET, _JOURNAL = "fleet.toml", "journal.sqlite"
_MOSQUITTO = "site/broker/mosquitto.conf"
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Backup:
    """The content of backup.json."""

    format: int
    program: str  # version of fedclip-edge that wrote it
    journal: int  # version of the journal's tables
    fleet: str
    made: str  # ISO time, UTC
    run: str  # the newest one; empty if there is none
    closed: int  # rounds of that run that are closed
    rounds: int  # of that run
    bundle: str  # its folder
    encoder_id: str
    classes_digest: str
    site: str  # path of the operator's folder, if it is in the backup; else empty
    files: Mapping[str, str]  # SHA-256 of every other member, by name

    def __post_init__(self) -> None:
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or name in ("", ".", _CONTENTS):
                raise ValueError(f"files: {name!r} is not a name in a folder")


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
        closed, rounds, run, encoder_id, classes_digest = _copy_journal(config, content / _JOURNAL)
        site, moved = _copy_files(config, content)
        text = _moved_toml(config_path, config, moved)
        _copy_bytes(text.encode(), content / _FLEET, config_path)
        files = {
            path.relative_to(content).as_posix(): _sha256(path)
            for path in sorted(content.rglob("*"))
            if path.is_file()
        }
        made = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
        backup = Backup(
            format=_FORMAT,
            program=__version__,
            journal=SCHEMA.version,
            fleet=config.fleet,
            made=made,
            run=run,
            closed=closed,
            rounds=rounds,
            bundle=str(config.bundle),
            encoder_id=encoder_id,
            classes_digest=classes_digest,
            site="" if site is None else str(site),
            files=files,
        )
        described = json.dumps(asdict(backup), indent=1).encode()
        _copy_bytes(described, content / _CONTENTS, config_path)
        _pack(content, (_CONTENTS, *files), beside / target.name)
        (beside / target.name).replace(target)
    return backup


def restore_backup(source: Path, folder: Path) -> Backup:
    """Write the files of the backup `source` into `folder`, which must not exist or be empty.

    Raises ConfigError if `folder` has files, or if `source` is not a whole backup that this version
    can use; OSError if a file cannot be read or written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder} already exists and was not changed; restore into a new folder, and move it "
            "to its place afterwards"
        )
    target = folder.absolute()
    with _opened(source) as tar, atomic.beside(target) as new:
        backup = _read_contents(tar, source)
        if backup.journal != SCHEMA.version:
            raise ConfigError(
                f"{source} was written by fedclip-edge {backup.program} (journal format "
                f"{backup.journal}), this is {__version__} (journal format {SCHEMA.version}); "
                "restore it with that version, finish its run there, then upgrade"
            )
        for name, sha256 in backup.files.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if _extract(tar, name, path) != sha256:
                raise _damaged(source, f"{name} is not the file that was written")
        if backup.site:
            _move_broker(new, backup.site, target / "site")
        _make(new, target)
    return backup


def _copy_journal(config: FleetConfig, target: Path) -> tuple[int, int, str, str, str]:
    """Copy the journal and check the copy; returns the state of its run, and the bundle's ids."""
    with contextlib.closing(open_journal(config.journal)) as journal:
        journal.copy(target)
    target.chmod(stat.S_IMODE(config.journal.stat().st_mode))
    with contextlib.closing(open_journal(target)) as copied:
        copied.check()
        run = copied.last_run()
        if run is None:
            bundle = read_bundle(config.bundle)
            return 0, 0, "", bundle.manifest.encoder_id, bundle.classes.digest
        closed = copied.rounds_closed(run.id)
    return closed, exchanges(run.plan), run.id, run.encoder_id, run.classes_digest


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
    for the journal, of which the backup has a copy.
    """
    is_hidden = any(part.startswith(".") for part in path.relative_to(site).parts)
    is_journal = path.parent == journal.parent and path.name.startswith(journal.name)
    return not is_hidden and not is_journal and path.suffix != ".tar"


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


def _move_broker(new: Path, old_site: str, site: Path) -> None:
    """Correct the paths in mosquitto.conf, if they are those of the folder of before."""
    path = new / _MOSQUITTO
    if path.is_file():
        mode = stat.S_IMODE(path.stat().st_mode)
        path.write_text(path.read_text().replace(f"{old_site}/", f"{site}/"))
        path.chmod(mode)


def _check_replaceable(target: Path, fleet: str) -> None:
    try:
        with _opened(target) as tar:
            is_ours = _read_contents(tar, target).fleet == fleet
    except ConfigError:
        is_ours = False
    if not is_ours:
        raise ConfigError(
            f"{target} exists and is not a backup of the fleet {fleet!r}; it was not changed; name "
            "another file"
        )


def _pack(content: Path, names: tuple[str, ...], target: Path) -> None:
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for name in names:
                tar.add(content / name, name, recursive=False)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[tarfile.TarFile]:
    """Open a backup; what is wrong with its bytes becomes a ConfigError."""
    try:
        with tarfile.open(source, "r:") as tar:
            yield tar
    except tarfile.TarError as error:
        raise _damaged(source, str(error)) from error
    except OSError as error:
        if error.filename is None or Path(error.filename) == source:
            raise ConfigError(
                f"{source} cannot be read: {error.strerror or error}; name a file that "
                "`fedclip-edge backup` wrote"
            ) from error
        raise


def _read_contents(tar: tarfile.TarFile, source: Path) -> Backup:
    try:
        table = json.loads(_member(tar, _CONTENTS).read())
    except (KeyError, ValueError, RecursionError) as error:
        raise _damaged(source, f"it has no readable {_CONTENTS}") from error
    found = table.get("format") if isinstance(table, dict) else None
    if found != _FORMAT:
        raise ConfigError(
            f"{source} is a backup of format {found}, this version of fedclip-edge reads {_FORMAT}"
            "; restore it with the version that wrote it"
        )
    return read_table(Backup, table, str(source))


def _extract(tar: tarfile.TarFile, name: str, path: Path) -> str:
    """Write a member to the new file `path`; returns its SHA-256."""
    try:
        member = _member(tar, name)
        mode = tar.getmember(name).mode & 0o777
    except KeyError:
        return ""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        shutil.copyfileobj(member, file, _PIECE_BYTES)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(mode)
    return _sha256(path)


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    """A member that is an ordinary file; raises KeyError if there is none."""
    file = tar.extractfile(name) if tar.getmember(name).isreg() else None
    if file is None:
        raise KeyError(name)
    return file


def _copy_bytes(data: bytes, target: Path, like: Path) -> None:
    """Write a new file with the mode of the file `like`; its folder is private until the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    target.chmod(stat.S_IMODE(like.stat().st_mode))


def _make(new: Path, folder: Path) -> None:
    try:
        new.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise ConfigError(f"{folder} already exists and was not changed") from None
        raise


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _damaged(source: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{source} is not a whole backup: {what}; nothing was restored; use another backup"
    )
