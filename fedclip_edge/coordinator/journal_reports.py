"""The reports in a journal: how the devices judge each model.

A later report by the same device on the same round replaces the earlier one.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedclip_edge.coordinator.journal_file import JournalFile
from fedclip_edge.protocol.report import Report
from fedclip_edge.storage.sqlite import Connection


@dataclass(frozen=True)
class Reports:
    """The reports of every run. Errors are those of JournalFile."""

    file: JournalFile

    def add(self, report: Report) -> None:
        """Store a report; a later one by the same device on the same round replaces it.

        The commit is not synced: the device sends its report again after a restart of the
        coordinator.
        """
        text = json.dumps(report.to_json())
        row = (report.run, report.round, report.device, zlib.compress(text.encode()))

        def insert(database: Connection) -> None:
            database.execute("INSERT OR REPLACE INTO report VALUES (?, ?, ?, ?)", row)

        self.file.add(insert, synced=False)

    def all(self, run: str) -> tuple[Report, ...]:
        """Every report of the run, in the order of round and device.

        Raises JournalError if one is damaged.
        """
        rows = self._reports("WHERE run = ? ORDER BY round, device", run)
        return tuple(self.file.decode(Report, text) for text in rows)

    def newest(self, run: str) -> dict[str, Mapping[str, Any]]:
        """The last report of each device in the run as a JSON object, by device.

        Raises JournalError if one is damaged.
        """
        texts = self._reports(
            "JOIN (SELECT device AS of, MAX(round) AS last FROM report WHERE run = ? "
            "GROUP BY device) ON device = of AND round = last WHERE run = ? ORDER BY device",
            run,
            run,
        )
        return {report["device"]: report for report in map(json.loads, texts)}

    def as_json(self, run: str) -> Iterator[Mapping[str, Any]]:
        """Yield every report of the run as a JSON object, in the order of round and device.

        This is several times as fast as `reports`. Raises JournalError if one is damaged.
        """
        yield from map(json.loads, self._reports("WHERE run = ? ORDER BY round, device", run))

    def _reports(self, which: str, *values: object) -> Iterator[str]:
        query = f"SELECT CAST(report AS BLOB) FROM report {which}"  # noqa: S608 - constants
        for (report,) in self.file.rows(query, *values):
            try:
                yield zlib.decompress(report).decode()
            except (zlib.error, TypeError, ValueError) as error:
                raise self.file.damaged(
                    f"a report of {values[0]} cannot be read ({error})"
                ) from error
