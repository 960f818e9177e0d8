"""The devices of each run in a journal: their pinned keys, and those that were removed."""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge.coordinator.journal_file import JournalFile


@dataclass(frozen=True)
class RunDevices:
    """The devices of every run. Errors are those of JournalFile."""

    file: JournalFile

    def pin_key(self, run: str, device: str, key: str, pictures: int = 0) -> None:
        """Pin a device's key in this run, in place of one that is pinned.

        `pictures` is the number of labelled pictures that the device has now.
        """
        with self.file.transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO pinned_key VALUES (?, ?, ?, ?)",
                (run, device, key, pictures),
            )

    def keys(self, run: str) -> dict[str, str]:
        """Every pinned key of the run, by device."""
        return dict(self.file.rows("SELECT device, key FROM pinned_key WHERE run = ?", run))

    def pictures(self, run: str) -> dict[str, int]:
        """The labelled pictures that each device had when it joined the run, by device."""
        return dict(self.file.rows("SELECT device, pictures FROM pinned_key WHERE run = ?", run))

    def forgotten(self, run: str) -> frozenset[str]:
        """The devices that were removed from the run (forgetting.py)."""
        rows = self.file.rows("SELECT device FROM forgotten WHERE run = ?", run)
        return frozenset(device for (device,) in rows)
