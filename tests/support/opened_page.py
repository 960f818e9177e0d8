"""The fleet's page in this process, for a client that logs in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from starlette.testclient import TestClient
from status_scene import SceneFleet

from fedclip_edge.config.fleet import load_fleet
from fedclip_edge.coordinator.page import process
from fedclip_edge.web.live import Pieces
from fedclip_edge.web.token_file import read_token

ADDRESS = "http://127.0.0.1:8080"
TOKEN_FILE = "journal.token"  # noqa: S105 - a name


@contextlib.contextmanager
def opened_page(drawn: SceneFleet, extra: str = "") -> Iterator[TestClient]:
    """A client of the page of `drawn` that is not logged in."""
    config = load_fleet(drawn.write_settings(8080, extra))
    app = process.application(config, read_token(drawn.folder / TOKEN_FILE), Pieces())
    with TestClient(app, base_url=ADDRESS, follow_redirects=False) as client:
        yield client


def log_in(client: TestClient, folder: Path, name: str = "anna") -> None:
    token = (folder / TOKEN_FILE).read_text().strip()
    answer = client.post("/login", data={"token": token, "name": name}, headers={"Origin": ADDRESS})
    assert answer.status_code == 303
