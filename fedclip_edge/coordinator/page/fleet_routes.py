"""Routes of the fleet's page: the fleet now, one device, and pictures by class."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fedclip_edge.coordinator.page.actions import ON_THE_FLEET
from fedclip_edge.coordinator.page.source import Source
from fedclip_edge.reporting.figures import decimal, duration, kilobytes, norm
from fedclip_edge.reporting.status_words import SEVERITY
from fedclip_edge.web.app import Pages
from fedclip_edge.web.live import stream

_SIDES = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class FleetRoutes:
    """The routes that show the fleet now."""

    source: Source
    pages: Pages

    def routes(self) -> list[BaseRoute]:
        """List the routes."""
        return [
            Route("/", self.fleet),
            Route("/events", self.events),
            Route("/devices/{device}", self.device),
            Route("/classes", self.classes),
        ]

    async def fleet(self, request: Request) -> Response:
        """Show the whole fleet; the browser then gets what changes."""
        await self.source.refresh()
        since, pieces = self.source.pieces.version, self.source.pieces.all()
        rows = self.source.rows()
        return self.pages.html(
            request, "fleet.html.j2", since=since, pieces=pieces, rows=rows, actions=ON_THE_FLEET
        )

    async def events(self, request: Request) -> Response:
        """Send what changes, until the browser goes away."""
        return stream(request, self.source.pieces)

    async def device(self, request: Request) -> Response:
        """Show one device in full."""
        name = request.path_params["device"]
        found = await asyncio.to_thread(self.source.ask, "devices", by_class=True)
        row = next((one for one in found["devices"] if one["id"] == name), None)
        if row is None:
            raise HTTPException(404, f"The fleet has no device {name!r} now.")
        return self.pages.html(
            request,
            "device.html.j2",
            row=row,
            severity=SEVERITY[row["state"]],
            facts=list(_facts(row)),
            classes=_by_class(row, found["classes"]),
        )

    async def classes(self, request: Request) -> Response:
        """Show the pictures of each class over the fleet."""
        found = await asyncio.to_thread(self.source.ask, "devices", by_class=True)
        told = [row for row in found["devices"] if row["pictures_by_class"]]
        counts = [
            {
                "name": name,
                "devices": sum(_count(row, "train", place) > 0 for row in told),
                **{side: sum(_count(row, side, place) for row in told) for side in _SIDES},
            }
            for place, name in enumerate(found["classes"])
        ]
        return self.pages.html(request, "classes.html.j2", classes=counts, told=len(told))


def _facts(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if row["seen_s"] is not None:
        yield "last seen", f"{duration(row['seen_s'])} ago"
    if row["part"]:
        yield "in the round", row["part"]
    if row["roles"]:
        yield "roles", ", ".join(row["roles"])
    if row["provider"]:
        yield "runs on", row["provider"]
    if row["certificate_ends"]:
        yield "certificate", f"ends {row['certificate_ends']}"
    yield "contributions", f"{row['contributions']}; norm of the last one {norm(row['norm'])}"
    for name, key in (("sent", "bytes_up"), ("received", "bytes_down")):
        yield name, f"{kilobytes(row[key])} kB since its agent started"
    seconds = (f"{what} {decimal(row[f'{what}_s'])} s" for what in ("encode", "train", "wait"))
    yield "time", ", ".join(seconds)
    if row["skipped"]:
        yield "not readable", f"{row['skipped']} files"
    if row["refused_messages"]:
        yield "refused", f"{row['refused_messages']} messages"
    if row["pictures"] and row["pictures"]["withheld"]:
        yield "withheld", f"{row['pictures']['withheld']} pictures of classes with few pictures"


def _by_class(row: Mapping[str, Any], classes: Sequence[str]) -> list[dict[str, Any]]:
    if not row["pictures_by_class"]:
        return []
    return [
        {
            "name": name,
            **{side: _count(row, side, place) for side in _SIDES},
            **{
                kind: _at(row["accuracy_by_class"].get(kind, ()), place)
                for kind in ("zero_shot", "federated")
            },
        }
        for place, name in enumerate(classes)
    ]


def _count(row: Mapping[str, Any], side: str, place: int) -> int:
    return _at(row["pictures_by_class"].get(side, ()), place) or 0


def _at(values: Sequence[Any], place: int) -> Any:
    return values[place] if place < len(values) else None
