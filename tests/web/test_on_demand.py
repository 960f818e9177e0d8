"""A page whose process runs only while somebody looks."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import free_port
from status_scene import SceneFleet, status
from system import wait_until

from fedclip_edge import log
from fedclip_edge.config.page import PageSettings
from fedclip_edge.processes.children import Children
from fedclip_edge.web import on_demand
from fedclip_edge.web.on_demand import OnDemand, open_page

# Answers one connection with its process id, and ends with the code that the browser sends.
CHILD = """
import os, socket, sys
with socket.socket(fileno=int(sys.argv[-1])) as listener:
    link, _ = listener.accept()
with link:
    link.sendall(str(os.getpid()).encode())
    sys.exit(int(link.recv(10)))
"""


class Owner:
    """A program with a page, whose time a test moves."""

    def __init__(self, children: Children) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.page = OnDemand(self.listener, [sys.executable, "-c", CHILD], children, "serve")
        self.now = 100.0
        self.events: list[tuple[str, dict[str, Any]]] = []

    def note(self, event: str, fields: Any) -> None:
        self.events.append((event, dict(fields)))

    def visit(self, code: int = 0, by: socket.socket | None = None) -> int:
        """The process that answered; it then ends with this code."""
        with by or socket.create_connection(self.address, 30) as link:
            link.setblocking(False)
            answer = b""

            def has_answer() -> bool:
                nonlocal answer
                self.page.look(self.now)
                with contextlib.suppress(BlockingIOError):
                    answer = link.recv(100)
                return answer != b""

            wait_until(has_answer, "an answer")
            link.setblocking(True)
            link.sendall(str(code).encode())
            assert link.recv(1) == b""
        wait_until(lambda: not Path(f"/proc/{int(answer)}").exists() or self._is_over(), "its end")
        return int(answer)

    def _is_over(self) -> bool:
        self.page.look(self.now)
        return self.page._child is None


@pytest.fixture
def owner() -> Iterator[Owner]:
    with Children() as children:
        made = Owner(children)
        with log.observed(made.note):
            yield made
        made.page.close()


def test_nothing_runs_until_a_browser_asks_and_each_visit_is_answered(owner: Owner) -> None:
    for _ in range(3):
        owner.page.look(owner.now)
    assert owner.page._child is None
    first, second = owner.visit(), owner.visit()
    assert first != second
    assert owner.events == []


def test_a_process_that_failed_is_started_again_after_a_pause(owner: Owner) -> None:
    owner.visit(code=1)
    assert owner.events == [("page_ended", {"code": 1})]
    with socket.create_connection(owner.address, 30):
        owner.now += 4.9
        owner.page.look(owner.now)
        assert owner.page._child is None
    owner.now += 0.2
    with socket.create_connection(owner.address, 30):
        owner.page.look(owner.now)
        assert owner.page._child is not None


@pytest.mark.parametrize("code", [2, 10, 18])
def test_after_a_fault_that_a_person_must_correct_browsers_are_refused(
    owner: Owner, code: int
) -> None:
    owner.visit(code)
    ((event, fields),) = owner.events
    assert (event, fields["code"]) == ("page_ended", code)
    assert fields["hint"] == "correct [page] as the line above says, then restart serve"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(owner.address, 30)
    owner.now += 1e6
    owner.page.look(owner.now)


def test_without_another_process_the_owner_goes_on(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    waiting = socket.create_connection(owner.address, 30)
    with monkeypatch.context() as patched:
        patched.setattr(Children, "start", refuse)
        owner.page.look(owner.now)
        owner.page.look(owner.now)
    assert owner.events == [("page_ended", {"reason": "Resource temporarily unavailable"})]
    owner.now += 5.0
    owner.visit(by=waiting)


def opened(settings: PageSettings, folder: Path, children: Children) -> OnDemand | None:
    tokens = folder / "page.token"
    return open_page(
        settings, folder / "agent.toml", tokens, children, owner="the agent", as_json=False
    )


def test_a_page_that_cannot_be_served_is_a_line_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    free = PageSettings(f"127.0.0.1:{free_port()}")
    wrong = PageSettings(free.listen, certificate=tmp_path / "page.pem", key=tmp_path / "page.key")
    with (
        log.observed(lambda event, fields: events.append((event, dict(fields)))),
        Children() as children,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        taken = PageSettings(f"127.0.0.1:{other.getsockname()[1]}")
        for settings in (taken, wrong):
            assert opened(settings, tmp_path, children) is None
        (tmp_path / "page.token").chmod(0o644)
        assert opened(free, tmp_path, children) is None
        monkeypatch.setattr(on_demand, "_LIBRARIES", ("no_such_library",))
        assert opened(free, tmp_path, children) is None
    assert {event for event, _ in events} == {"page_not_served"}
    assert all(f["hint"] == "correct [page], then restart the agent" for _, f in events)
    reasons = [fields["reason"] for _, fields in events]
    for reason, words in zip(
        reasons,
        ("cannot be opened", "cannot be used as certificate", "chmod 600", "pip install"),
        strict=True,
    ):
        assert words in reason


def test_its_owner_does_not_load_the_web_server() -> None:
    code = "import fedclip_edge.web.on_demand, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"starlette", "uvicorn", "jinja2", "anyio", "numpy"}


def test_a_page_that_nobody_uses_ends_and_no_visit_is_lost_meanwhile(tmp_path: Path) -> None:
    scene, port = SceneFleet(tmp_path, status([])), free_port()
    settings = scene.write_settings(port)
    short = (
        "from fedclip_edge.web import serving; serving.IDLE_S = 0.2; serving._LINGER_S = 0.1\n"
        "from fedclip_edge.cli.main import main; main()"
    )
    words = [sys.executable, "-c", short, "page", str(settings)]
    answers: list[int] = []
    with Children() as children:
        listener = socket.create_server(("127.0.0.1", port))
        page, over = OnDemand(listener, words, children, "serve"), threading.Event()
        processes = set()

        def own() -> None:
            while not over.wait(0.01):
                page.look(time.monotonic())
                if page._child is not None:
                    processes.add(page._child.pid)

        owner = threading.Thread(target=own)
        owner.start()
        try:
            while len(processes) < 3:
                for pause_s in (0.0, 0.19, 0.26, 0.31, 0.36, 0.41):
                    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                    link.request("GET", "/login")
                    answers.append(link.getresponse().status)
                    link.close()
                    time.sleep(pause_s)
                assert len(answers) < 300
            wait_until(lambda: page._child is None, "the end of the last process")
        finally:
            over.set()
            owner.join()
        page.close()
    assert set(answers) == {200}
