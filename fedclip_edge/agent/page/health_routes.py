"""The route of the box's health: the findings of `fedclip-edge doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fedclip_edge.agent.page.live_box import LiveBox


@dataclass(frozen=True, eq=False)
class HealthRoutes:
    """The route that shows the findings."""

    live: LiveBox

    def routes(self) -> list[BaseRoute]:
        """List the route."""
        return [Route("/health", self.health)]

    async def health(self, request: Request) -> Response:
        """Show the findings."""
        return await self.live.html(request, "health.html.j2")
