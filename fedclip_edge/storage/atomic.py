"""Files and folders that are written completely or not at all.

Laws:

- A file or folder with its final name is complete and synced: it is first written in a temporary
  folder next to it and then renamed.
- An error or an interrupt leaves no temporary folder. After a kill, the next write of the same name
  removes the temporary folder.
- A replaced file keeps its mode, and its owner and group if this process may set them. So a daemon
  that could read the old file can read the new one.
- Replacing a folder takes two renames. If the process is killed between them, the old folder is
  left inside a hidden folder next to it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def write_folder(
    folder: Path, contents: Mapping[str, bytes], check: Callable[[Path], object]
) -> None:
    """Write the files `contents` as `folder`, and replace an existing folder.

    `check` is called with the new folder before the rename. If it raises, the error is passed on
    and nothing has changed. Raises OSError if the folder cannot be written.
    """
    with beside(folder) as new:
        for name, data in contents.items():
            _write(new / name, data)
        _sync(new)
        check(new)
        _move(new, folder)


def make_folder(folder: Path, contents: Mapping[str, bytes], private: Collection[str]) -> None:
    """Write the files `contents` (names may contain folders) as a new `folder`.

    Only the owner can read the files in `private`. Raises FileExistsError, without a change, if
    `folder` is a file or a folder that is not empty; OSError if it cannot be written.
    """
    with beside(folder) as new:
        for name, data in contents.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            _write(new / name, data, private=name in private)
        for inner in {(new / name).parent for name in contents} | {new}:
            _sync(inner)
        try:
            new.rename(folder)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(errno.EEXIST, "already exists", str(folder)) from None
            raise
        _sync(folder.parent)


def write_file(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write `path`, and replace an existing file; only the owner can read a `private` one.

    A device or a pipe, such as /dev/null, is written to and stays. Raises OSError if it cannot be
    written.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(data)
        return
    with beside(path) as new:
        _write(new / path.name, data, private=private)
        if not private:
            _keep_access(path, new / path.name)
        (new / path.name).replace(path)
    _sync(path.parent)


def write_new_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write all of the private files `contents` into `folder`, or none of them.

    Raises FileExistsError, without a change, if one of them exists; OSError if they cannot be
    written. A kill between two renames leaves the files that have their names already.
    """
    written: list[Path] = []
    with beside(folder / "files") as new:
        for name, data in contents.items():
            _write(new / name, data, private=True)
        for name in contents:
            if (folder / name).exists():
                raise FileExistsError(errno.EEXIST, "already exists", str(folder / name))
        try:
            for name in contents:
                (new / name).rename(folder / name)
                written.append(folder / name)
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise
    _sync(folder)


def put(new: Path, target: Path) -> None:
    """Rename the complete and synced file or folder `new`, made `beside` it, to `target`.

    An existing file is replaced, and a folder that is empty. Raises OSError.
    """
    new.replace(target)
    _sync(target.parent)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yield a new, locked folder next to `path`; it is deleted at the end unless it was renamed.

    Missing parents of `path` are created. Raises OSError if a folder cannot be created. An OSError
    that names no file, such as that of a full disk, is given the name of the parent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.new."
    _sweep(path.parent, prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    try:
        with _locked(folder):
            mask = os.umask(0)
            os.umask(mask)
            folder.chmod(0o777 & ~mask)  # mkdtemp gives access to the owner only
            yield folder
    except OSError as error:
        error.filename = error.filename or str(path.parent)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases when this process dies.

    Raises OSError if another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _sweep(parent: Path, prefix: str) -> None:
    """Remove the folders of killed writers: those with this prefix that no process has locked."""
    for left in parent.glob(f"{glob.escape(prefix)}*"):
        with contextlib.suppress(OSError), _locked(left):  # if it is locked, its writer still runs
            shutil.rmtree(left, ignore_errors=True)


def _write(path: Path, data: bytes, *, private: bool = False) -> None:
    # The file is created with its mode, so that others can never read a private file.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _keep_access(old: Path, new: Path) -> None:
    """Give the file `new` the mode, owner and group of `old`, if `old` exists."""
    try:
        known = old.stat()
    except OSError:
        return
    with contextlib.suppress(OSError):  # only root may set any owner; others keep the mode
        os.chown(new, known.st_uid, known.st_gid)
    new.chmod(stat.S_IMODE(known.st_mode))


def _move(source: Path, target: Path) -> None:
    """Rename a folder; an existing target is deleted after the new one is in its place."""
    if not target.exists():
        source.rename(target)
    else:
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        old = aside / "folder"
        with _locked(aside):
            try:
                target.rename(old)
                source.rename(target)
            except BaseException:
                if old.exists():
                    old.rename(target)
                aside.rmdir()
                raise
    _sync(target.parent)
    _sweep(target.parent, f".{target.name}.old.")


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
