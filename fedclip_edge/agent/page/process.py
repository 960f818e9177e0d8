"""The process of the box's page, beside the agent."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette

from fedclip_edge.agent.page.box_pieces import BoxPieces
from fedclip_edge.agent.page.health import Health
from fedclip_edge.agent.page.health_routes import HealthRoutes
from fedclip_edge.agent.page.live_box import LiveBox
from fedclip_edge.agent.page.source import Source
from fedclip_edge.agent.page.thumbnails import ThumbnailRoutes
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.config.page import needed
from fedclip_edge.web.app import Pages, page_app
from fedclip_edge.web.live import Pieces
from fedclip_edge.web.serving import serve_page
from fedclip_edge.web.token_file import read_token

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_LINKS = {"Pictures": "/", "Label": "/label", "Classes": "/classes", "Health": "/health"}


def serve(config: AgentConfig, file: Path, given: socket.socket | None = None) -> None:
    """Serve the page until SIGTERM or Ctrl-C; with `given`, also as `serve_page` says.

    `file` is the agent.toml of `config`. Raises ConfigError if `config` has no [page], if the
    address, the certificate or the token file cannot be used; ModuleNotFoundError if starlette,
    uvicorn or jinja2 are not installed.
    """
    settings, pieces = needed(config.page), Pieces()
    config.state_dir.mkdir(parents=True, exist_ok=True)  # of the token, before the agent's start
    app = application(config, file, read_token(config.page_token), pieces)
    serve_page(settings, app, pieces, config.page_token, given)


def application(config: AgentConfig, file: Path, token: str, pieces: Pieces) -> Starlette:
    """Make the page's application; raises ConfigError if `config` has no [page]."""
    pages = Pages(_TEMPLATES, f"box {config.id}", _LINKS, asks_name=False)
    source = Source(config, file)
    health = Health(file, pages.environment)
    live = LiveBox(pages, pieces, [BoxPieces(source, pages.environment).render, health.render])
    routes = [
        *live.routes(),
        *ThumbnailRoutes(source.pictures).routes(),
        *HealthRoutes(live, health).routes(),
    ]

    @contextlib.asynccontextmanager
    async def background() -> AsyncIterator[None]:
        async with live.follow(), health.ending():
            yield

    return page_app(needed(config.page), token, pages, routes, background)
