"""The server of a page: HTTPS with the certificate of [page], and its errors."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import system
import uvicorn
from brokers import free_port
from status_scene import SceneFleet, status
from system import command, running, wait_until

from fedclip_edge.errors import ConfigError
from fedclip_edge.web import serving
from fedclip_edge.web.live import Pieces


def write_pair(folder: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", folder / "page.key", "-out", folder / "page.pem"],
        check=True, capture_output=True,
    )  # fmt: skip


def test_with_a_certificate_the_page_speaks_https_and_ends_cleanly(tmp_path: Path) -> None:
    write_pair(tmp_path)
    scene, port = SceneFleet(tmp_path, status([])), free_port()
    settings = scene.write_settings(port, 'certificate = "page.pem"\nkey = "page.key"')
    log = tmp_path / "page.log"
    with (
        log.open("w") as file,
        running(command("page", settings), stdout=file, stderr=file) as process,
    ):
        wait_until(lambda: f"page_served address=https://127.0.0.1:{port}" in log.read_text(), "it")
        trusted = ssl.create_default_context(cafile=str(tmp_path / "page.pem"))
        link = http.client.HTTPSConnection("localhost", port, context=trusted, timeout=30)
        link.request("GET", "/login")
        assert link.getresponse().status == 200
        link.close()
        process.terminate()
        assert process.wait(30) == 0
    assert "Traceback" not in log.read_text()
    token = (tmp_path / "journal.token").read_text().strip()
    assert token not in log.read_text()


def test_an_address_that_is_taken_and_a_wrong_key_end_with_a_sentence(tmp_path: Path) -> None:
    scene = SceneFleet(tmp_path, status([]))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = system.run("page", scene.write_settings(port))
    assert taken.returncode == ConfigError.exit_code
    assert f"[page] listen: 127.0.0.1:{port} cannot be opened" in taken.stderr
    write_pair(tmp_path)
    (tmp_path / "page.key").write_text("no key")
    wrong = system.run(
        "page", scene.write_settings(port, 'certificate = "page.pem"\nkey = "page.key"')
    )
    assert wrong.returncode == ConfigError.exit_code
    assert "cannot be used as certificate and key" in wrong.stderr


def test_without_the_table_it_says_what_to_write(tmp_path: Path) -> None:
    settings = tmp_path / "fleet.toml"
    settings.write_text('fleet = "lab"\nbundle = "bundle"\n')
    none = system.run("page", settings)
    assert none.returncode == ConfigError.exit_code
    assert "has no table [page]" in none.stderr


@pytest.mark.parametrize("module", ["agent.process", "coordinator.process", "cli.main"])
def test_without_a_page_nothing_of_it_is_loaded(module: str) -> None:
    code = f"import fedclip_edge.{module}, sys; print(*sys.modules)"
    done = subprocess.run(
        [*system.command()[:1], "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert f"fedclip_edge.{module}" in loaded
    assert not loaded & {"starlette", "uvicorn", "jinja2", "fedclip_edge.web"}


def test_a_server_that_nobody_uses_first_stops_to_accept_and_then_ends() -> None:
    """A connection that was accepted just before is still answered."""
    closed, answers = list[int](), asyncio.Event()

    class Listening:
        def close(self) -> None:
            closed.append(len(closed))

    async def answer(_scope: Any, _receive: Any, _send: Any) -> None:
        await answers.wait()

    async def serve() -> None:
        use = serving._Use(answer)
        server = serving._Server(uvicorn.Config(answer), Pieces(), use, idle_s=60.0)
        server.servers = [Listening()]  # type: ignore[list-item]
        began = time.monotonic()
        assert not server._is_over(began + 59)
        assert closed == []
        assert not server._is_over(began + 61)
        assert closed == [0]
        request = asyncio.create_task(use({"type": "http"}, None, None))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert not server._is_over(began + 1000)
        answers.set()
        await request
        assert not server._is_over(time.monotonic() + 0.5)
        assert server._is_over(began + 1000)
        assert closed == [0]

    asyncio.run(serve())
