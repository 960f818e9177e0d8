"""The pieces of the fleet's first page, from a status (`coordinator/snapshot.py`)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedclip_edge.reporting.chart import Chart
from fedclip_edge.reporting.status_words import SEVERITY, facts, headline

if TYPE_CHECKING:
    from jinja2 import Environment

_PARTS = (
    "missing",
    "refused",
    "waiting",
    "downloading",
    "training",
    "evaluating",
    "in the queue",
    "uploading",
    "done",
)
PARTS_OF_PAGE = ("now", "parts", "faults", "charts")
_RANK = {state: rank for rank, state in enumerate(SEVERITY)}
_FAULTS_MAX = 12
_STEADY_S = 2.0  # a time that moved by less is the same one, rounded differently
# Of a status, what a row shows as it is.
_SHOWN = (
    "id",
    "state",
    "detail",
    "part",
    "domain",
    "pictures",
    "provider",
    "certificate_ends",
    "accuracy",
)


@dataclass(eq=False)
class FleetPieces:
    """Renders the pieces; a row that is as it was is not rendered again."""

    environment: Environment
    _rows: dict[str, tuple[Mapping[str, Any], str]] = field(default_factory=dict)
    _seen_at: dict[str, float] = field(default_factory=dict)  # Unix time, in seconds

    def nothing(self, trouble: str) -> dict[str, str]:
        """Return the pieces before the first answer of the coordinator."""
        return {
            "trouble": self._macros.trouble(trouble).strip(),
            **{name: f'<div id="{name}" hidden></div>' for name in PARTS_OF_PAGE},
        }

    def old(self, pieces: Mapping[str, str], trouble: str) -> dict[str, str]:
        """Return the last pieces, with the reason why there are no newer ones."""
        return {**pieces, "trouble": self._macros.trouble(trouble).strip()}

    @property
    def _macros(self) -> Any:
        return self.environment.get_template("fleet_pieces.html.j2").module

    def render(
        self, status: Mapping[str, Any], charts: Sequence[tuple[str, Chart]]
    ) -> dict[str, str]:
        """Return the HTML of each piece, by the id of its element; the worst device first."""
        macros = self._macros
        rows = {f"device-{row['id']}": self._row(row, status, macros) for row in status["devices"]}
        self._rows = {row["id"]: self._rows[row["id"]] for row in status["devices"]}
        return {
            "trouble": macros.trouble("").strip(),
            "now": macros.now(headline(status), facts(status), status["run"]).strip(),
            "parts": macros.parts(_parts(status)).strip(),
            "faults": macros.faults(_faults(status)).strip(),
            "charts": macros.charts(charts).strip(),
            **rows,
        }

    def _row(self, row: Mapping[str, Any], status: Mapping[str, Any], macros: Any) -> str:
        shown = {
            **{name: row[name] for name in _SHOWN},
            "seen_at": self._seen(row["id"], row["seen_s"]),
            "severity": SEVERITY[row["state"]],
            # The order of a status: by state, then the lowest accuracy first.
            "order": _RANK[row["state"]] * 10 + row["accuracy"].get("federated", -1.0),
            "bundle": _bundle(row, status["bundle"]),
        }
        before = self._rows.get(row["id"])
        if before is None or before[0] != shown:
            self._rows[row["id"]] = before = (shown, macros.device_row(shown).strip())
        return before[1]

    def _seen(self, device: str, seen_s: float | None) -> int | None:
        if seen_s is None:
            self._seen_at.pop(device, None)
            return None
        at, before = time.time() - seen_s, self._seen_at.get(device)
        if before is None or abs(at - before) > _STEADY_S:
            self._seen_at[device] = before = at
        return round(before)


def _bundle(row: Mapping[str, Any], ours: Mapping[str, str]) -> str:
    """Compare the device's bundle with that of the run, in one or two words."""
    if row["encoder_id"] is None:
        return ""
    if row["encoder_id"] != ours["encoder_id"]:
        return "other encoder"
    return "as the run" if row["classes_digest"] == ours["classes_digest"] else "other classes"


def _parts(status: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Count the devices by their part in the open round; empty if none is open."""
    counts = Counter(row["part"] for row in status["devices"])
    return [(part, counts[part]) for part in _PARTS if counts[part]]


def _faults(status: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Count devices by state and reason, as (state, reason, devices); the worst first."""
    kinds = Counter(
        (row["state"], row["detail"])
        for row in status["devices"]
        if SEVERITY[row["state"]] in ("bad", "warning")
    )
    ranked = sorted(kinds.items(), key=lambda item: (_RANK[item[0][0]], -item[1], item[0][1]))
    return [(state, detail, count) for (state, detail), count in ranked[:_FAULTS_MAX]]
