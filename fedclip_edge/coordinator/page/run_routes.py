"""Routes of the fleet's page about runs: the list, two compared, reports and downloads."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from fedclip_edge.coordinator import run_report
from fedclip_edge.coordinator.model_lookup import find_run
from fedclip_edge.coordinator.page.classifier import make_classifier
from fedclip_edge.coordinator.page.source import Source
from fedclip_edge.coordinator.run_export import tracked
from fedclip_edge.errors import ConfigError
from fedclip_edge.reporting import tracking
from fedclip_edge.reporting.chart import NARROW_PX, WIDE_PX, Chart, Line, chart_layout
from fedclip_edge.reporting.figures import difference, number
from fedclip_edge.reporting.run_figures import Summary, mean
from fedclip_edge.reporting.run_page import run_page
from fedclip_edge.reporting.run_words import conclusion
from fedclip_edge.web.app import Pages
from fedclip_edge.web.guard import POLICY_OF_A_FILE

_SHOWN = 100
_ACTIONS = 50


@dataclass(frozen=True, eq=False)
class RunRoutes:
    """The routes that show what is in the journal; no coordinator has to serve."""

    source: Source
    pages: Pages

    def routes(self) -> list[BaseRoute]:
        """List the routes."""
        return [
            Route("/runs", self.runs),
            Route("/compare", self.compare),
            Route("/runs/{run}/report", self.report),
            Route("/runs/{run}/report.json", self.report_as_json),
            Route("/runs/{run}/figures.csv", self.figures),
            Route("/runs/{run}/model.safetensors", self.model),
            Route("/runs/{run}/classifier.onnx", self.classifier),
        ]

    async def runs(self, request: Request) -> Response:
        """List the runs, the newest first, and what operators did."""
        rows, actions = await asyncio.to_thread(self._runs)
        return self.pages.html(request, "runs.html.j2", rows=rows, actions=actions)

    def _runs(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        with self.source.journal() as journal:
            runs = journal.runs.all()[::-1][:_SHOWN]
            rows = [
                {
                    **run_report.brief(journal, run),
                    "started": _date(journal.runs.course(run.id).started_at),
                    "has_file": self._model_file(run.id).is_file(),
                }
                for run in runs
            ]
            actions = [
                {
                    "at": _date(one.at),
                    "user": one.user,
                    "command": one.command,
                    "arguments": "" if one.arguments == "{}" else one.arguments,
                }
                for one in journal.actions.all()[::-1][:_ACTIONS]
            ]
        return rows, actions

    async def compare(self, request: Request) -> Response:
        """Show two runs beside each other."""
        chosen = request.query_params.getlist("run")
        if len(chosen) != 2:
            raise HTTPException(400, "Choose exactly two runs to compare.")
        older, newer = await asyncio.to_thread(self._summaries, chosen)
        return self.pages.html(
            request,
            "compare.html.j2",
            runs=(older, newer),
            conclusions=[conclusion(one) for one in (older, newer)],
            charts=_charts(older, newer),
            rows=_rows(older, newer),
        )

    def _summaries(self, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        with self.source.journal() as journal:
            one, other = (self.source.summary(journal, name) for name in names)
        return (one, other) if one["started_at"] <= other["started_at"] else (other, one)

    async def report(self, request: Request) -> Response:
        """Show the report of a run, as `serve` writes it after the run."""
        text = await asyncio.to_thread(lambda: run_page(self._summary(request)))
        return HTMLResponse(
            text.encode(errors="replace"), headers={"Content-Security-Policy": POLICY_OF_A_FILE}
        )

    async def report_as_json(self, request: Request) -> Response:
        """Send the figures of the report."""
        summary = await asyncio.to_thread(self._summary, request)
        text = json.dumps(summary, indent=2) + "\n"
        return _file(request, text.encode(), "application/json", "json")

    def _summary(self, request: Request) -> dict[str, Any]:
        with self.source.journal() as journal:
            return self.source.summary(journal, request.path_params["run"])

    async def figures(self, request: Request) -> Response:
        """Send every figure of a run as CSV (`run export --csv`)."""
        return _file(request, await asyncio.to_thread(self._figures, request), "text/csv", "csv")

    def _figures(self, request: Request) -> bytes:
        with self.source.journal() as journal, tempfile.TemporaryDirectory() as folder:
            run = find_run(journal, request.path_params["run"])
            path = Path(folder) / "figures.csv"
            tracking.write_csv(tracked(journal, run, self.source.config.fleet), path)
            return path.read_bytes()

    async def model(self, request: Request) -> Response:
        """Send the model file that `serve` wrote at the end of the run."""
        return _file(
            request,
            await asyncio.to_thread(self._model, request),
            "application/octet-stream",
            "safetensors",
        )

    def _model(self, request: Request) -> bytes:
        with self.source.journal() as journal:
            run = find_run(journal, request.path_params["run"])
        path = self._model_file(run.id)
        if not path.is_file():
            raise HTTPException(404, f"{run.id} has no model file: it is not done.")
        return path.read_bytes()

    async def classifier(self, request: Request) -> Response:
        """Send the run's model and its encoder as one ONNX file."""
        return _file(
            request,
            await asyncio.to_thread(self._classifier, request),
            "application/octet-stream",
            "onnx",
        )

    def _classifier(self, request: Request) -> bytes:
        with self.source.journal() as journal:
            run = find_run(journal, request.path_params["run"])
        bundle = run_report.bundle_of(self.source.config, run)
        if bundle is None:
            raise ConfigError(
                f"the bundle of {run.id} cannot be used; put it back where fleet.toml names it"
            )
        return make_classifier(bundle.folder, run.id, self.source.config.journal)

    def _model_file(self, run: str) -> Path:
        return self.source.config.journal.parent / "models" / f"{run}.safetensors"


def _file(request: Request, content: bytes, kind: str, extension: str) -> Response:
    name = f"{request.path_params['run']}.{extension}"  # an id, since the run was found
    return Response(
        content,
        media_type=kind,
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def _charts(*runs: Summary) -> list[tuple[str, Chart]]:
    """Draw the mean accuracy of each run by round."""
    lines = []
    for style, summary in enumerate(runs):
        entries = summary["devices"].values()
        by_round = [
            mean([v for its in entries if (v := _at(its["accuracy_by_round"], n)) is not None])
            for n in range(summary["rounds_closed"] + 1)
        ]
        before = mean(
            [v for its in entries if (v := number(its["accuracy"].get("zero_shot"))) is not None]
        )
        lines.append(Line(f"{summary['run']} {summary['method']}", by_round, before, style))
    return [
        ("wide", chart_layout(lines, *WIDE_PX, name_columns=20)),
        ("narrow", chart_layout(lines, *NARROW_PX, name_columns=0)),
    ]


def _rows(older: Summary, newer: Summary) -> list[dict[str, Any]]:
    """List the accuracy of each device in both runs, the largest loss first."""
    rows = []
    for device in sorted({*older["devices"], *newer["devices"]}):
        values = [
            one["devices"].get(device, {}).get("accuracy", {}).get("federated")
            for one in (older, newer)
        ]
        change = difference({"before": values[0], "after": values[1]}, "after", "before")
        rows.append({"id": device, "before": values[0], "after": values[1], "change": change})
    return sorted(rows, key=lambda row: (row["change"] is None, row["change"] or 0.0, row["id"]))


def _at(values: Sequence[Any], place: int) -> float | None:
    return number(values[place]) if place < len(values) else None


def _date(at: float | None) -> str:
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
