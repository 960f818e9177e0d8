"""The live pieces of the box's page, and its templates with those that are on top of every page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fedclip_edge.web.app import Pages
from fedclip_edge.web.live import EVERY_S, Pieces, following, stream

Part = Callable[[], Mapping[str, str]]  # makes some of the pieces, by id; it may block


@dataclass(eq=False)
class LiveBox:
    """The pieces of one page, made by `parts`; and its templates."""

    pages: Pages
    pieces: Pieces
    parts: Sequence[Part]
    _made_at: float = -1e9
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def routes(self) -> list[BaseRoute]:
        """List the route of the live updates."""
        return [Route("/events", self.events)]

    async def events(self, request: Request) -> Response:
        """Send what changes, until the browser goes away."""
        return stream(request, self.pieces)

    async def html(
        self, request: Request, template: str, status: int = 200, **values: Any
    ) -> Response:
        """Render a template that extends box.html.j2; it gets the pieces as `pieces`, by id."""
        await self.refresh()
        since, pieces = self.pieces.version, self.pieces.all()
        return self.pages.html(request, template, status, since=since, pieces=pieces, **values)

    def follow(self) -> AbstractAsyncContextManager[None]:
        """Keep the pieces new while a browser listens."""
        return following(self.pieces, self.refresh)

    def expire(self) -> None:
        """Make the pieces anew at the next `refresh`: a person has changed something."""
        self._made_at = -1e9

    async def refresh(self) -> None:
        """Make the pieces, unless they are newer than a second."""
        async with self._lock:
            if time.monotonic() - self._made_at < 0.9 * EVERY_S:
                return
            self.pieces.replace(await asyncio.to_thread(self._make))
            self._made_at = time.monotonic()

    def _make(self) -> dict[str, str]:
        return {name: html for part in self.parts for name, html in part().items()}
