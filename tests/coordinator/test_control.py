"""The control socket, with real sockets; and with the process of a coordinator."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import signal
import socket
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import system
from system import Site, wait_until

from fedclip_edge.coordinator import control
from fedclip_edge.coordinator.control import ControlSocket, Request, ask, listen, socket_path
from fedclip_edge.errors import ConfigError, LinkError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return socket_path(tmp_path / "journal.sqlite")


@pytest.fixture
def opened(path: Path) -> Iterator[ControlSocket]:
    made = listen(path)
    yield made
    made.close()


@contextlib.contextmanager
def answering(opened: ControlSocket, answer: Mapping[str, Any]) -> Iterator[list[Request]]:
    """Answer every request like the loop of `serve`; yields the requests that came."""
    came: list[Request] = []
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(0.005):
            while (asked := opened.next_request()) is not None:
                came.append(asked[0])
                asked[1](answer)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield came
    finally:
        ended.set()
        thread.join()


def test_a_command_arrives_with_its_arguments_and_user_and_is_answered(
    opened: ControlSocket, path: Path
) -> None:
    with answering(opened, control.success({"run": "run-1"})) as came:
        assert ask(path, "start", start="last", rounds=3) == {"run": "run-1"}
    user = getpass.getuser()
    assert came == [Request("start", {"start": "last", "rounds": 3}, user)]


def test_a_program_says_who_asked_it_for_a_command(opened: ControlSocket, path: Path) -> None:
    with answering(opened, control.success({})) as came:
        ask(path, "pause", "page (anna)")
        for wrong in ("a" * 101, "two\nlines"):
            with pytest.raises(ConfigError, match="printable characters as 'via'"):
                ask(path, "pause", wrong)
    assert [one.user for one in came] == [f"{getpass.getuser()} via page (anna)"]


def test_a_refusal_is_the_coordinators_own_sentence(opened: ControlSocket, path: Path) -> None:
    with (
        answering(opened, control.failure("no such run; do this")),
        pytest.raises(ConfigError, match="no such run; do this"),
    ):
        ask(path, "start")


def test_only_the_same_user_may_connect(opened: ControlSocket, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("line", [b"no json\n", b"[1]\n", b'{"command": 1}\n', b"\xff\n", b"{}\n"])
def test_garbage_gets_a_sentence_and_the_connection_goes_on(
    opened: ControlSocket, path: Path, line: bytes
) -> None:
    with (
        answering(opened, control.success({"n": 1})),
        socket.socket(socket.AF_UNIX) as link,
        link.makefile("rb") as lines,
    ):
        link.settimeout(system.DEADLINE_S)
        link.connect(str(path))
        link.sendall(line)
        refused = json.loads(lines.readline())
        assert refused["ok"] is False
        assert refused["error"]
        link.sendall(b'{"command": "status"}\n')
        assert json.loads(lines.readline()) == {"ok": True, "result": {"n": 1}}


def test_clients_that_leave_early_or_never_end_a_line_harm_nobody(
    opened: ControlSocket, path: Path
) -> None:
    with answering(opened, control.success({})), contextlib.ExitStack() as stack:
        for _ in range(20):
            link = stack.enter_context(socket.socket(socket.AF_UNIX))
            link.connect(str(path))
            link.sendall(b'{"command"')
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(path))
            link.sendall(b'{"command": "status"}\n')
        assert ask(path, "status") == {}


def test_without_a_coordinator_the_next_step_is_named(path: Path) -> None:
    with pytest.raises(LinkError, match="start `fedclip-edge serve`"):
        ask(path, "start")
    listen(path).close()
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as stale:  # as a killed process leaves it
        stale.bind(str(path))
    with pytest.raises(LinkError, match="start `fedclip-edge serve`"):
        ask(path, "start")
    with contextlib.closing(listen(path)) as opened, answering(opened, control.success({})):
        assert ask(path, "start") == {}


def test_a_coordinator_that_ends_leaves_the_socket_of_its_successor(path: Path) -> None:
    first = listen(path)
    with contextlib.closing(listen(path)) as second:
        first.close()
        with answering(second, control.success({"who": "second"})):
            assert ask(path, "status") == {"who": "second"}
    assert not path.exists()


def test_a_path_that_is_too_long_for_a_socket_works_too(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    path = socket_path(folder / "journal.sqlite")
    with contextlib.closing(listen(path)) as opened, answering(opened, control.success({"n": 1})):
        assert ask(path, "status") == {"n": 1}
    assert not list(folder.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_denies_it_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be made"):
        listen(tmp_path / "journal.sock")
    tmp_path.chmod(0o700)


def test_a_running_coordinator_answers_commands(site: Site) -> None:
    fleet = site.write_fleet(devices=1, rounds=1)
    assert "no coordinator serves" in system.run("run", "start", fleet).stderr
    serve = site.start("serve", fleet, "--once", "--json", log="serve")
    wait_until(lambda: "serving" in site.text("serve"), "the coordinator to serve")
    path = socket_path(site.folder / "journal.sqlite")
    wait_until(path.exists, "the control socket")
    refused = system.run("run", "start", fleet)
    assert refused.returncode == ConfigError.exit_code
    assert "is under way (0 of 1 rounds closed)" in refused.stderr
    for command, arguments, sentence in (
        ("strat", {}, "did you mean 'start'"),
        ("start", {"form": 1}, "unknown key 'form'"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            ask(path, command, **arguments)
    serve.send_signal(signal.SIGTERM)
    assert serve.wait(system.DEADLINE_S) == 0
    assert not path.exists()
