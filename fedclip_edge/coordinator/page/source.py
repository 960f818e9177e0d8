"""Sources of the fleet's page: the serving process, through its control socket, and the journal.

Laws:
- The page only reads; a change is a command of the control socket, as one from a shell.
- It cannot disturb a round: this is another process, the journal is opened to
  read it, and the coordinator answers at most _SHARE of its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator import control, run_report
from fedclip_edge.coordinator.journal import Journal, open_journal_to_read
from fedclip_edge.coordinator.journal_tables import Run
from fedclip_edge.coordinator.model_lookup import find_run
from fedclip_edge.coordinator.page.fleet_pieces import FleetPieces
from fedclip_edge.errors import FedclipError
from fedclip_edge.reporting.chart import Chart
from fedclip_edge.reporting.run_page import run_charts
from fedclip_edge.web.live import EVERY_S, Pieces, following

_SHARE = 0.02  # of the coordinator's time that the page may take with its questions
_CHARTS_S = 5.0  # between two looks at the reports in the journal


@dataclass(eq=False)
class Source:
    """Answers and figures of one fleet; the methods block, except `follow` and `refresh`."""

    config: FleetConfig
    rendered: FleetPieces
    pieces: Pieces
    _shown: Mapping[str, str] = field(default_factory=dict)  # the pieces of the last answer
    _asked_at: float = -1e9
    _took_s: float = 0.0
    _charts: tuple[tuple[Any, ...], float, Sequence[tuple[str, Chart]]] = ((), -1e9, ())
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def rows(self) -> list[str]:
        """Return the rows of the last answer, the worst device first."""
        return [html for name, html in self._shown.items() if name.startswith("device-")]

    def ask(self, command: str, via: str = "", /, **arguments: Any) -> dict[str, Any]:
        """Give a command to the coordinator; raises the errors of `control.ask`."""
        path = control.socket_path(self.config.journal)
        return control.ask(path, command, via, **arguments)

    @contextlib.contextmanager
    def journal(self) -> Iterator[Journal]:
        """Open the journal to read it; raises ConfigError or JournalError if that fails."""
        with contextlib.closing(open_journal_to_read(self.config.journal)) as journal:
            yield journal

    def summary(self, journal: Journal, name: str | None) -> dict[str, Any]:
        """Return the figures of a run; raises ConfigError if there is none of this id."""
        run: Run = find_run(journal, name)
        bundle = run_report.bundle_of(self.config, run)
        return dict(run_report.summarise(journal, run, self.config.fleet, bundle))

    def follow(self) -> AbstractAsyncContextManager[None]:
        """Keep the pieces new while a browser listens."""
        return following(self.pieces, self.refresh, self._pause_s)

    def _pause_s(self) -> float:
        return max(EVERY_S, self._took_s / _SHARE)

    async def refresh(self) -> None:
        """Ask the coordinator, unless the last answer is newer than a second."""
        async with self._lock:
            if time.monotonic() - self._asked_at < max(0.9 * EVERY_S, self._took_s / _SHARE):
                return
            await asyncio.to_thread(self._refresh)

    def _refresh(self) -> None:
        began = time.monotonic()
        try:
            status = self.ask("status", every=True)
            self._took_s = time.monotonic() - began
            self._shown = self.rendered.render(status, self._charts_of(status))
        except FedclipError as error:
            self._took_s = 0.0
            shown = self._shown or self.rendered.nothing("")
            self.pieces.replace(self.rendered.old(shown, str(error)))
        else:
            self.pieces.replace(self._shown)
        self._asked_at = time.monotonic()

    def _charts_of(self, status: Mapping[str, Any]) -> Sequence[tuple[str, Chart]]:
        """Return the accuracy by round of the newest run, which the journal has."""
        run, accuracy = status["run"], status["accuracy"] or {}
        key = (run["id"], run["rounds_closed"], run["state"], accuracy.get("devices"))
        before, at, charts = self._charts
        if key == before or time.monotonic() - at < _CHARTS_S:
            return charts
        with self.journal() as journal:
            charts = run_charts(self.summary(journal, run["id"]))
        self._charts = (key, time.monotonic(), charts)
        return charts
