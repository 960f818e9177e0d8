"""Restores of a coordinator from the file of a backup (backup.py)."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

from fedclip_edge import __version__
from fedclip_edge.coordinator.backup_file import Backup, damaged, extract, opened, read_contents
from fedclip_edge.coordinator.journal_tables import SCHEMA
from fedclip_edge.errors import ConfigError
from fedclip_edge.storage import atomic

_MOSQUITTO = "site/broker/mosquitto.conf"


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
    with opened(source) as tar, atomic.beside(target) as new:
        backup = read_contents(tar, source)
        if backup.journal != SCHEMA.version:
            raise ConfigError(
                f"{source} was written by fedclip-edge {backup.program} (journal format "
                f"{backup.journal}), this is {__version__} (journal format {SCHEMA.version}); "
                "restore it with that version, finish its run there, then upgrade"
            )
        for name, sha256 in backup.files.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if extract(tar, name, path) != sha256:
                raise damaged(source, f"{name} is not the file that was written")
        if backup.site:
            _move_broker(new, backup.site, target / "site")
        _make(new, target)
    return backup


def _move_broker(new: Path, old_site: str, site: Path) -> None:
    """Correct the paths in mosquitto.conf, if they are those of the folder of before."""
    path = new / _MOSQUITTO
    if path.is_file():
        mode = stat.S_IMODE(path.stat().st_mode)
        path.write_text(path.read_text().replace(f"{old_site}/", f"{site}/"))
        path.chmod(mode)


def _make(new: Path, folder: Path) -> None:
    try:
        atomic.put(new, folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise ConfigError(f"{folder} already exists and was not changed") from None
        raise
