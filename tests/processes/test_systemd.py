"""Messages to systemd, with a real socket in its place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import system
from notify_socket import NotifySocket, notify_socket

from fedclip_edge.processes.systemd import Systemd

HOUR_US = str(3600 * 10**6)


@pytest.fixture(params=[False, True], ids=["path", "abstract"])
def systemd(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[NotifySocket]:
    with notify_socket(tmp_path, abstract=request.param) as made:
        yield made


def close(service: Systemd) -> None:
    assert service._socket is not None
    service._socket.close()


def test_it_says_what_happens(systemd: NotifySocket) -> None:
    service = Systemd()
    environment = {"NOTIFY_SOCKET": systemd.name, "PATH": "/bin"}
    service.connect(environment)
    assert environment == {"PATH": "/bin"}  # a child does not speak for its parent
    service.ready()
    service.status("two\nlines")
    service.status("two\nlines")
    service.turn()  # no watchdog
    service.stopping()
    said = [systemd.next() for _ in range(3)]
    assert said == ["READY=1", "STATUS=two lines", "STOPPING=1"]
    assert systemd.next(0) is None
    close(service)


def test_the_words_are_known_also_without_systemd() -> None:
    service = Systemd()
    service.connect({})
    service.status("waits for the coordinator")
    assert service.text == "waits for the coordinator"


def test_a_turn_of_the_loop_is_a_sign_of_life_when_it_is_due(
    systemd: NotifySocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("fedclip_edge.processes.systemd.time.monotonic", lambda: now[0])
    service = Systemd()
    pid = str(os.getpid())
    service.connect(
        {"NOTIFY_SOCKET": systemd.name, "WATCHDOG_USEC": "8000000", "WATCHDOG_PID": pid}
    )
    service.ready()
    assert systemd.next() == "READY=1"
    alive = []
    for _ in range(60):
        now[0] += 0.1
        service.turn()
        if systemd.next(0) is not None:
            alive.append(round(now[0] - 1000, 1))
    assert alive == [2.0, 4.0, 6.0]
    close(service)


@pytest.mark.parametrize(
    "watchdog",
    [
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"},  # that of another process
    ],
)
def test_without_a_watchdog_of_its_own_there_is_no_sign_of_life(
    tmp_path: Path, watchdog: dict[str, str]
) -> None:
    with notify_socket(tmp_path) as systemd:
        service = Systemd()
        service.connect({"NOTIFY_SOCKET": systemd.name, **watchdog})
        service.turn()
        assert systemd.next(0) is None
        close(service)


@pytest.mark.parametrize("name", [None, "", "vsock:2:1234", "relative"])
def test_without_a_socket_it_is_silent(name: str | None) -> None:
    service = Systemd()
    service.connect({} if name is None else {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": HOUR_US})
    service.ready()
    service.turn()
    service.stopping()
    assert service._socket is None


def test_a_socket_that_is_gone_is_logged_once_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = Systemd()
    service.connect({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    service.ready()
    service.stopping()
    line, *more = capsys.readouterr().out.splitlines()
    assert line.endswith('systemd_not_told message="READY=1" reason="No such file or directory"'), (
        line
    )
    assert not more
    with notify_socket(tmp_path) as systemd:
        service._address = systemd.name
        service.status("works")
        assert systemd.next() == "STATUS=works"
    close(service)


def test_a_socket_whose_reader_sleeps_does_not_block(tmp_path: Path) -> None:
    with notify_socket(tmp_path) as systemd:
        service = Systemd()
        service.connect({"NOTIFY_SOCKET": systemd.name})
        for number in range(5000):  # far more than the socket's queue holds
            service.status(str(number))
        close(service)


HANGS = """\
import threading, time
from fedclip_edge.processes.systemd import SYSTEMD
SYSTEMD.connect()
def waits_for_ever():
    print("ready", flush=True)
    time.sleep(600)
waits_for_ever()
"""


def test_the_signal_of_a_hang_shows_where_each_thread_was(tmp_path: Path) -> None:
    with notify_socket(tmp_path) as systemd:
        environment = {**os.environ, "NOTIFY_SOCKET": systemd.name, "WATCHDOG_USEC": HOUR_US}
        with system.running(
            [sys.executable, "-c", HANGS],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process:
            assert system.line_of(process) == "ready"
            process.send_signal(6)
            _, errors = process.communicate(timeout=system.DEADLINE_S)
            assert process.returncode == -6
            assert "waits_for_ever" in errors
