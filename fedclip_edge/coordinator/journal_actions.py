"""The operator's actions in a journal: each is there before it takes effect."""

from __future__ import annotations

import time
from dataclasses import dataclass

from fedclip_edge.coordinator.journal_file import JournalFile
from fedclip_edge.coordinator.journal_tables import Action


@dataclass(frozen=True)
class Actions:
    """The commands that changed a run. Errors are those of JournalFile."""

    file: JournalFile

    def add(self, user: str, command: str, arguments: str) -> None:
        """Record a command that is about to change a run."""
        with self.file.transaction() as database:
            database.execute(
                "INSERT INTO operator_action VALUES (NULL, ?, ?, ?, ?)",
                (time.time(), user, command, arguments),
            )

    def all(self) -> tuple[Action, ...]:
        """Every command that changed a run, oldest first."""
        rows = self.file.rows("SELECT at, user, command, arguments FROM operator_action")
        return tuple(Action(*row) for row in rows)
