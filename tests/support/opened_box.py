"""A box that exists only as files, and its page in this process, for a client."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from fedclip_edge.agent.page import process
from fedclip_edge.agent.page.picture_map import id_of
from fedclip_edge.config.agent import AgentConfig, load_agent
from fedclip_edge.vision.picture_index import PictureIndex
from fedclip_edge.web.live import Pieces
from fedclip_edge.web.token_file import read_token

ADDRESS = "http://127.0.0.1:8080"


class BoxScene:
    """A box in a folder, with the files that its agent would write."""

    def __init__(self, folder: Path, extra: str = "", port: int = 8080) -> None:
        self.folder = folder
        self.settings = folder / "agent.toml"
        self.settings.write_text(
            f'id = "cam-01"\nfleet = "lab"\nstate_dir = "state"\nexport_key = "{"0" * 64}"\n'
            f'{extra}\n[data]\nfolder = "pictures"\n[page]\nlisten = "127.0.0.1:{port}"\n'
        )
        (folder / "pictures").mkdir()
        (folder / "state").mkdir()
        self.token_file = self.config.page_token
        read_token(self.token_file)

    @property
    def config(self) -> AgentConfig:
        return load_agent(self.settings)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def add_picture(self, name: str, size: tuple[int, int] = (40, 30)) -> str:
        """Draw a picture into the folder, as the agent has read it; returns its id."""
        rng = np.random.default_rng(len(list((self.folder / "pictures").rglob("*"))))
        path = self.folder / "pictures" / name
        path.parent.mkdir(exist_ok=True)
        few = rng.integers(0, 255, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(few).resize(size).save(path)
        return self._index(path)

    def add_file(self, name: str, content: bytes) -> str:
        path = self.folder / "pictures" / name
        path.write_bytes(content)
        return self._index(path)

    def _index(self, path: Path) -> str:
        # An hour later, so that the file does not count as one that is still being written.
        index = PictureIndex(lambda: path.stat().st_mtime + 3600, self.state / "pictures.sqlite")
        index.open()
        with contextlib.closing(index):
            found = index.hash_of(path)
            index.save()
        return id_of(found)

    @contextlib.contextmanager
    def opened(self, *, logs_in: bool = True) -> Iterator[TestClient]:
        """A client of the page."""
        token = read_token(self.token_file)
        app = process.application(self.config, self.settings, token, Pieces())
        with TestClient(app, base_url=ADDRESS, follow_redirects=False) as client:
            if logs_in:
                ours = {"Origin": ADDRESS}
                answer = client.post("/login", data={"token": token}, headers=ours)
                assert answer.status_code == 303
            yield client
