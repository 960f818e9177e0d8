"""The process of `fedclip-edge page`: the fleet's page, beside the coordinator."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette

from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator.page.actions import ActionRoutes
from fedclip_edge.coordinator.page.fleet_pieces import FleetPieces
from fedclip_edge.coordinator.page.fleet_routes import FleetRoutes
from fedclip_edge.coordinator.page.run_routes import RunRoutes
from fedclip_edge.coordinator.page.source import Source
from fedclip_edge.errors import ConfigError
from fedclip_edge.web.app import Pages, page_app
from fedclip_edge.web.live import Pieces
from fedclip_edge.web.serving import serve_page
from fedclip_edge.web.token_file import read_token

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_LINKS = {"Fleet": "/", "Runs": "/runs", "Classes": "/classes"}


def token_path(journal: Path) -> Path:
    """Return the token file of the page of the coordinator that serves from this journal."""
    return journal.with_suffix(".token")


def serve(config: FleetConfig) -> None:
    """Serve the page until SIGTERM or Ctrl-C.

    Raises ConfigError if `config` has no [page], if the address, the certificate or the token file
    cannot be used; ModuleNotFoundError if starlette, uvicorn or jinja2 are not installed.
    """
    if config.page is None:
        raise ConfigError(
            "the configuration has no table [page]; write `[page]` and below it "
            '`listen = "127.0.0.1:8080"`'
        )
    tokens = token_path(config.journal)
    pieces = Pieces()
    serve_page(config.page, application(config, read_token(tokens), pieces), pieces, tokens)


def application(config: FleetConfig, token: str, pieces: Pieces) -> Starlette:
    """Make the page's application; `config` has the table [page]."""
    assert config.page is not None
    pages = Pages(_TEMPLATES, f"fleet {config.fleet}", _LINKS)
    source = Source(config, FleetPieces(pages.environment), pieces)
    routes = [
        *FleetRoutes(source, pages).routes(),
        *RunRoutes(source, pages).routes(),
        *ActionRoutes(source, pages).routes(),
    ]
    return page_app(config.page, token, pages, routes, source.follow)
