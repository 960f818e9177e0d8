"""The file of a backup: a tar with a list of its members and their hashes.

Law: nothing is used from a file that is cut, changed or of another format, and no member has a name
outside the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from fedclip_edge.config.reading import read_table
from fedclip_edge.errors import ConfigError

FORMAT = 1
CONTENTS = "backup.json"
BUNDLES = "journal.bundles"  # the folder of published bundles, next to journal.sqlite
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
            if path.is_absolute() or ".." in path.parts or name in ("", ".", CONTENTS):
                raise ValueError(f"files: {name!r} is not a name in a folder")

    @property
    def has_published(self) -> bool:
        """True if published bundles are in the backup."""
        return any(name.startswith(f"{BUNDLES}/") for name in self.files)


def pack(content: Path, names: tuple[str, ...], target: Path) -> None:
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for name in names:
                tar.add(content / name, name, recursive=False)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def opened(source: Path) -> Iterator[tarfile.TarFile]:
    """Open a backup; what is wrong with its bytes becomes a ConfigError."""
    try:
        with tarfile.open(source, "r:") as tar:
            yield tar
    except tarfile.TarError as error:
        raise damaged(source, str(error)) from error
    except OSError as error:
        if error.filename is None or Path(error.filename) == source:
            raise ConfigError(
                f"{source} cannot be read: {error.strerror or error}; name a file that "
                "`fedclip-edge backup` wrote"
            ) from error
        raise


def read_contents(tar: tarfile.TarFile, source: Path) -> Backup:
    try:
        table = json.loads(_member(tar, CONTENTS).read())
    except (KeyError, ValueError, RecursionError) as error:
        raise damaged(source, f"it has no readable {CONTENTS}") from error
    found = table.get("format") if isinstance(table, dict) else None
    if found != FORMAT:
        raise ConfigError(
            f"{source} is a backup of format {found}, this version of fedclip-edge reads {FORMAT}"
            "; restore it with the version that wrote it"
        )
    return read_table(Backup, table, str(source))


def extract(tar: tarfile.TarFile, name: str, path: Path) -> str:
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
    return sha256_of(path)


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    """A member that is an ordinary file; raises KeyError if there is none."""
    file = tar.extractfile(name) if tar.getmember(name).isreg() else None
    if file is None:
        raise KeyError(name)
    return file


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def damaged(source: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{source} is not a whole backup: {what}; nothing was restored; use another backup"
    )
