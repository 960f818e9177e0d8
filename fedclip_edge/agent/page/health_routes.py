"""Routes of the box's health: the findings of `fedclip-edge doctor`, and the button that asks."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from fedclip_edge.agent.page.health import Health
from fedclip_edge.agent.page.live_box import LiveBox


@dataclass(frozen=True, eq=False)
class HealthRoutes:
    """The routes that show the findings and start the checks."""

    live: LiveBox
    health: Health

    def routes(self) -> list[BaseRoute]:
        """List the routes."""
        return [
            Route("/health", self.show, methods=["GET"]),
            Route("/health", self.ask, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        """Show the last findings; the browser gets newer ones as they come."""
        return await self.live.html(request, "health.html.j2")

    async def ask(self, request: Request) -> Response:
        """Start the checks."""
        self.health.ask()
        return RedirectResponse("/health", 303)
