"""The process of the fleet's page, beside the coordinator."""

from __future__ import annotations

import socket
from pathlib import Path

from starlette.applications import Starlette

from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.config.page import needed
from fedclip_edge.coordinator.page.actions import ActionRoutes
from fedclip_edge.coordinator.page.fleet_pieces import FleetPieces
from fedclip_edge.coordinator.page.fleet_routes import FleetRoutes
from fedclip_edge.coordinator.page.run_routes import RunRoutes
from fedclip_edge.coordinator.page.source import Source
from fedclip_edge.web.app import Pages, page_app
from fedclip_edge.web.live import Pieces
from fedclip_edge.web.serving import serve_page
from fedclip_edge.web.token_file import read_token

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_LINKS = {"Fleet": "/", "Runs": "/runs", "Classes": "/classes"}


def serve(config: FleetConfig, given: socket.socket | None = None) -> None:
    """Serve the page until SIGTERM or Ctrl-C; with `given`, also as `serve_page` says.

    Raises ConfigError if `config` has no [page], if the address, the certificate or the token file
    cannot be used; ModuleNotFoundError if starlette, uvicorn or jinja2 are not installed.
    """
    settings, pieces = needed(config.page), Pieces()
    app = application(config, read_token(config.page_token), pieces)
    serve_page(settings, app, pieces, config.page_token, given)


def application(config: FleetConfig, token: str, pieces: Pieces) -> Starlette:
    """Make the page's application; raises ConfigError if `config` has no [page]."""
    pages = Pages(_TEMPLATES, f"fleet {config.fleet}", _LINKS, name_for="journal")
    source = Source(config, FleetPieces(pages.environment), pieces)
    routes = [
        *FleetRoutes(source, pages).routes(),
        *RunRoutes(source, pages).routes(),
        *ActionRoutes(source, pages).routes(),
    ]
    return page_app(needed(config.page), token, pages, routes, source.follow)
