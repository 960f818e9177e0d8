"""The process of the box's page, beside the agent."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette

from fedclip_edge.agent.page.box_pieces import BoxPieces
from fedclip_edge.agent.page.catalogue import Catalogue
from fedclip_edge.agent.page.class_routes import ClassRoutes
from fedclip_edge.agent.page.health import Health
from fedclip_edge.agent.page.health_routes import HealthRoutes
from fedclip_edge.agent.page.label_routes import LabelRoutes, ListsPiece
from fedclip_edge.agent.page.labelling import Labelling
from fedclip_edge.agent.page.lists import ReviewMaker
from fedclip_edge.agent.page.live_box import LiveBox
from fedclip_edge.agent.page.picture_map import Known
from fedclip_edge.agent.page.picture_routes import NewestPiece, PictureRoutes
from fedclip_edge.agent.page.source import Source
from fedclip_edge.agent.page.thumbnails import ThumbnailRoutes
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.config.page import needed
from fedclip_edge.processes import heap
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
    heap.free_large_at_once()  # a picture may have 300 MB when it is decoded
    settings, pieces = needed(config.page), Pieces()
    config.state_dir.mkdir(parents=True, exist_ok=True)  # of the token, before the agent's start
    app = application(config, file, read_token(config.page_token), pieces)
    serve_page(settings, app, pieces, config.page_token, given)


def application(config: AgentConfig, file: Path, token: str, pieces: Pieces) -> Starlette:
    """Make the page's application; raises ConfigError if `config` has no [page]."""
    pages = Pages(_TEMPLATES, f"box {config.id}", _LINKS, name_for="log")
    source = Source(config, file)
    catalogue, labelling = Catalogue(config, source.bundle), Labelling(config.state_dir)
    health = Health(file, pages.environment)
    review = ReviewMaker(config, catalogue)
    parts = [
        BoxPieces(source, pages.environment).render,
        NewestPiece(catalogue, pages.environment).render,
        ListsPiece(review, pages.environment).render,
        health.render,
    ]
    live = LiveBox(pages, pieces, parts)

    def find(picture: str) -> Known | None:
        # The agent saves its index some seconds after the answer.
        return source.pictures.find(picture) or catalogue.find(picture)

    routes = [
        *live.routes(),
        *ThumbnailRoutes(find).routes(),
        *HealthRoutes(live, health).routes(),
        *PictureRoutes(catalogue, labelling, live).routes(),
        *LabelRoutes(catalogue, review, labelling, live).routes(),
        *ClassRoutes(catalogue, review, live).routes(),
    ]

    @contextlib.asynccontextmanager
    async def background() -> AsyncIterator[None]:
        async with live.follow(), health.ending():
            yield

    return page_app(needed(config.page), token, pages, routes, background)
