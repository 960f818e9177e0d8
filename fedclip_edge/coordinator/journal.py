"""The coordinator's journal: one SQLite file with everything that must survive a restart.

It holds runs, the newest closed models, the open round's contributions, reports and pinned keys.
SQLite keeps a write-ahead log and syncs at every commit. Each part of the journal has a module of
its own, with its laws; all parts share one file, and so one transaction (journal_file.py).

Laws:
- Nothing is acknowledged before it is in the journal.
- A file that a new journal is made in appears complete or not at all. A file that exists already is
  never taken for a new journal.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator.journal_actions import Actions
from fedclip_edge.coordinator.journal_contributions import Contributions
from fedclip_edge.coordinator.journal_devices import RunDevices
from fedclip_edge.coordinator.journal_file import JournalFile, damaged_file
from fedclip_edge.coordinator.journal_reports import Reports
from fedclip_edge.coordinator.journal_rounds import Rounds
from fedclip_edge.coordinator.journal_runs import Runs
from fedclip_edge.coordinator.journal_tables import SCHEMA
from fedclip_edge.errors import ConfigError, JournalError
from fedclip_edge.storage import atomic
from fedclip_edge.storage.lock import locked_folder
from fedclip_edge.storage.sqlite import (
    Connection,
    EmptyDatabaseError,
    OtherDatabaseError,
    OtherVersionError,
    errors_as,
    open_database,
    open_to_read,
)


class Journal(JournalFile):
    """An open journal, with its parts.

    Every method that writes, of any part, syncs before it returns, except `reports.add`. After
    `hold`, `contributions.keep` does not sync either, until `sync`.
    """

    def __init__(
        self,
        path: Path,
        database: Connection,
        keep_models: int = FleetConfig.keep_models,
        keep_sums_mb: int = FleetConfig.keep_sums_mb,
    ) -> None:
        super().__init__(path, database)
        self.keep_models = keep_models
        self.keep_sums_mb = keep_sums_mb

    # The parts are made when they are asked for: if they and the journal referred to each other, a
    # journal that nobody uses any more would keep its file open until the next garbage collection.

    @property
    def runs(self) -> Runs:
        return Runs(self)

    @property
    def rounds(self) -> Rounds:
        return Rounds(self, self.keep_models, self.keep_sums_mb)

    @property
    def contributions(self) -> Contributions:
        return Contributions(self)

    @property
    def reports(self) -> Reports:
        return Reports(self)

    @property
    def devices(self) -> RunDevices:
        return RunDevices(self)

    @property
    def actions(self) -> Actions:
        return Actions(self)


def open_journal(
    path: Path,
    keep_models: int = FleetConfig.keep_models,
    keep_sums_mb: int = FleetConfig.keep_sums_mb,
) -> Journal:
    """Open the journal; create it if it is missing.

    Each round that it closes leaves the newest `keep_models` models of its run in the file, and at
    most `keep_sums_mb` MB of last contributions.
    Raises ConfigError, and changes nothing, if `path` is a folder, a database of another program or
    a journal of another version; JournalError if the file cannot be read or written, is empty or
    damaged.
    """

    def opened() -> Connection:
        if not path.exists():
            _create(path)
        _check_not_empty(path)
        return open_database(path, SCHEMA, create=False)

    return Journal(path, _opened(path, opened), keep_models, keep_sums_mb)


def open_journal_to_read(path: Path) -> Journal:
    """Open the journal to read it only, also while a coordinator writes to it; it must exist.

    Raises as `open_journal` does, and ConfigError if the file is missing.
    """

    def opened() -> Connection:
        if not path.exists():
            raise ConfigError(
                f"there is no journal {path} yet; start `fedclip-edge serve`, or name another "
                "configuration file"
            )
        _check_not_empty(path)
        return open_to_read(path, SCHEMA)

    return Journal(path, _opened(path, opened))


def _check_not_empty(path: Path) -> None:
    if path.stat().st_size == 0:
        raise damaged_file(path, "it is empty (0 bytes)")


def _opened(path: Path, open_it: Callable[[], Connection]) -> Connection:
    """Call `open_it`, and raise the errors of `open_journal` in place of SQLite's."""

    def refused(error: Exception) -> JournalError:
        return JournalError(
            f"the journal {path} cannot be opened ({error}); free or repair the disk, let this user "
            "write there, or set 'journal' to another file; the file is unchanged"
        )

    if path.is_dir():
        raise ConfigError(f"the journal {path} is a folder; set 'journal' to a file")
    try:
        with errors_as(refused, lambda error: damaged_file(path, str(error))):
            return open_it()
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(
            f"the journal {path} cannot be opened: {path.parent} is not a folder; set 'journal' to a "
            "file in a folder"
        ) from None
    except OSError as error:
        raise refused(error) from error
    except EmptyDatabaseError:
        raise damaged_file(path, "it has no tables") from None
    except OtherDatabaseError:
        raise ConfigError(
            f"{path} is a database of another program; set 'journal' to another file"
        ) from None
    except OtherVersionError as error:
        raise ConfigError(
            f"the journal {path} has format version {error.version}, this program uses "
            f"{SCHEMA.version}; finish its run with the version that started it, or set 'journal' "
            "to another file"
        ) from None


def _create(path: Path) -> None:
    """Make a new journal, unless another process makes it at the same time.

    The file appears with all its tables. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked_folder(path.parent):
        if path.exists():
            return
        for stale in ("-wal", "-shm"):  # of a deleted journal; SQLite would read them into this one
            Path(f"{path}{stale}").unlink(missing_ok=True)
        with atomic.beside(path) as folder:
            open_database(folder / path.name, SCHEMA).close()
            content = (folder / path.name).read_bytes()
        atomic.write_file(path, content)
