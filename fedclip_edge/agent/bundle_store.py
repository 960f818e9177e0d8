"""The bundles that a device has fetched: the one in use, and the one before it.

    STATE_DIR/bundles/chosen.json      which one is in use
    STATE_DIR/bundles/SERIAL-HASH/     one bundle
    STATE_DIR/bundles/parts/           files that are arriving

The folder of `bundle` in agent.toml, if that is set, is used until a bundle is fetched. It is never
changed.

Laws:
- Which bundle is in use changes in one step, with chosen.json. A device that is killed in between
  has the one before.
- A bundle is accepted only if its serial number is larger than that of every bundle that this
  device has had, also after a rollback. So no earlier bundle can be played again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fedclip_edge.config.reading import read_table
from fedclip_edge.errors import BundleError, ConfigError
from fedclip_edge.pki.bundle_description import Description
from fedclip_edge.pki.bundle_signature import serial_in
from fedclip_edge.storage import atomic
from fedclip_edge.storage.lock import lock_file
from fedclip_edge.storage.text_file import read_json
from fedclip_edge.vision.bundle import Bundle, read_bundle

_CHOSEN = "chosen.json"


def fetched_folder(state_dir: Path) -> Path:
    """The folder of a device's fetched bundles."""
    return state_dir / "bundles"


@dataclass(frozen=True)
class _Chosen:
    """Names of folders; empty for the bundle that agent.toml names, or for none."""

    current: str = ""
    previous: str | None = None  # None: there is nothing to go back to
    newest: int = 0  # the largest serial number that was ever in use


@dataclass(frozen=True, eq=False)
class BundleStore:
    """The bundles of one device; `given` is the bundle that agent.toml names, if it names one."""

    folder: Path
    given: Path | None

    @property
    def parts(self) -> Path:
        """The folder of the files that are arriving."""
        return self.folder / "parts"

    @property
    def current(self) -> Path | None:
        """The folder of the bundle in use; None if the device has none yet."""
        chosen = self._read()
        if not chosen.current:
            return self.given
        if self.given is not None and serial_in(self.given) > chosen.newest:
            return self.given  # the owner has put a newer one there
        return self.folder / chosen.current

    @property
    def newest(self) -> int:
        """The largest serial number of all bundles that were in use; 0 if none was signed."""
        given = 0 if self.given is None else serial_in(self.given)
        return max(self._read().newest, given)

    def open(self) -> Bundle | None:
        """Read the bundle in use; None if the device has none.

        Raises BundleError if it is missing or damaged. A fetched one is then given up, so that it
        is fetched again.
        """
        folder = self.current
        if folder is None:
            return None
        if folder == self.given:
            return read_bundle(folder)
        try:
            return read_bundle(folder)
        except BundleError:
            with self._locked():
                shutil.rmtree(folder, ignore_errors=True)
                lost = int(folder.name.partition("-")[0])
                self._write(_Chosen(newest=min(self._read().newest, lost - 1)))
            raise

    def read(self, *, reads_encoder: bool = True) -> Bundle | None:
        """Read the bundle in use, as `read_bundle` does, and change nothing; None if there is none.

        It is for programs beside the agent. Raises BundleError if it is missing or damaged.
        """
        folder = self.current
        return None if folder is None else read_bundle(folder, reads_encoder=reads_encoder)

    def stage(self, description: Description, sources: Mapping[str, Path]) -> Path:
        """Put a new bundle together in a folder of its own, and return the folder.

        `sources` are the large files by name; they stay where they are. Raises OSError if the disk
        is full or cannot be written.
        """
        staged = self.folder / "new"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        for name, content in description.texts.items():
            (staged / name).write_bytes(content)
        for name, source in sources.items():
            try:
                os.link(source, staged / name)
            except OSError:  # on another file system
                shutil.copyfile(source, staged / name)
        return staged

    def switch(self, staged: Path, description: Description) -> Path:
        """Use the bundle in the folder `staged` from now on; keep the one before.

        Raises OSError on a disk error; the bundle in use is then the one before.
        """
        serial = description.signature.serial
        name = f"{serial}-{description.signature.manifest[:16]}"
        with self._locked():
            before = self._read()
            kept = "" if self.current == self.given else before.current
            shutil.rmtree(self.folder / name, ignore_errors=True)
            staged.rename(self.folder / name)
            has_one = kept or self.given is not None
            self._write(_Chosen(name, kept if has_one else None, serial))
            shutil.rmtree(self.parts, ignore_errors=True)
            self._delete_others(name, kept)
        return self.folder / name

    def roll_back(self) -> Path:
        """Use the bundle before the one in use again, and return its folder.

        A second call goes back to the newer one. Raises ConfigError if there is no bundle before,
        BundleError if it is damaged.
        """
        chosen = self._read()
        if chosen.previous is None:
            raise ConfigError(
                f"{self.folder} holds no earlier bundle to go back to; a device keeps the one that "
                "it used before the last one was fetched"
            )
        folder = self.folder / chosen.previous if chosen.previous else self.given
        if folder is None:
            raise ConfigError(
                "the earlier bundle was the one that 'bundle' in agent.toml named; name it again"
            )
        read_bundle(folder)
        with self._locked():
            self._write(replace(chosen, current=chosen.previous, previous=chosen.current))
        return folder

    def changed_at(self) -> int:
        """Time of the last change of the bundle in use, in nanoseconds; 0 before the first."""
        try:
            return (self.folder / _CHOSEN).stat().st_mtime_ns
        except OSError:
            return 0

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(lock_file(self.folder / "lock", str(self.folder))):
            yield

    def _read(self) -> _Chosen:
        path = self.folder / _CHOSEN
        try:
            table = read_json(path)
            if not isinstance(table, dict):
                raise ConfigError(f"{path} does not hold a JSON object")
            return read_table(_Chosen, table, str(path))
        except (FileNotFoundError, NotADirectoryError):  # the latter: state_dir is refused later
            return _Chosen()
        except ConfigError as error:
            raise ConfigError(
                f"{error}; delete {self.folder}, and the bundle is fetched again"
            ) from None

    def _write(self, chosen: _Chosen) -> None:
        atomic.write_file(
            self.folder / _CHOSEN, (json.dumps(dataclasses.asdict(chosen)) + "\n").encode()
        )

    def _delete_others(self, *kept: str) -> None:
        for entry in self.folder.iterdir():
            if entry.is_dir() and entry.name not in kept:
                shutil.rmtree(entry, ignore_errors=True)
