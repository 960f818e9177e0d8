"""The page of a device in this process, for a client that is logged in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from box_scene import BoxScene
from opened_page import ADDRESS
from starlette.testclient import TestClient

from fedclip_edge.agent.page import process
from fedclip_edge.web.live import Pieces
from fedclip_edge.web.token_file import read_token

OURS = {"Origin": ADDRESS}


@contextlib.contextmanager
def opened_box(scene: BoxScene, name: str = "anna") -> Iterator[TestClient]:
    """A client of the device's page."""
    config = scene.config
    token = read_token(config.page_token)
    app = process.application(config, scene.folder / "agent.toml", token, Pieces())
    with TestClient(app, base_url=ADDRESS, follow_redirects=False) as client:
        answer = client.post("/login", data={"token": token, "name": name}, headers=OURS)
        assert answer.status_code == 303
        yield client
