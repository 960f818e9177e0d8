"""`serve` and `agent` as services of systemd, with a real socket in its place."""

from __future__ import annotations

import configparser
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import system
from brokers import StartMosquitto
from checkout import ROOT
from notify_socket import NotifySocket, notify_socket
from system import Site, wait_until

from fedclip_edge.vision.bundle import Bundle

pytestmark = pytest.mark.one_python
WATCHDOG_US = "4000000"  # a sign of life every second
QUIET_S = 5.0


@pytest.fixture
def site(tmp_path: Path, random_bundle: Bundle, start_mosquitto: StartMosquitto) -> Iterator[Site]:
    with Site(tmp_path, random_bundle, start_mosquitto().address, "lab") as made:
        yield made


@contextlib.contextmanager
def as_service(
    site: Site, *arguments: str | Path, log: str, abstract: bool = False
) -> Iterator[tuple[subprocess.Popen[bytes], NotifySocket]]:
    """Start a command as systemd does, with a watchdog; `env` adds to the environment itself."""
    place = site.folder / f"of-{log}"
    place.mkdir()
    with notify_socket(place, abstract=abstract) as socket:
        words = ["env", f"NOTIFY_SOCKET={socket.name}", f"WATCHDOG_USEC={WATCHDOG_US}"]
        process = site.start_program([*words, *system.command(*arguments)], log)
        yield process, socket


def test_a_fleets_programs_tell_systemd_what_they_do(site: Site) -> None:
    options = "[plan.options]\nepochs = 300\n"
    fleet = site.write_fleet(devices=1, rounds=2000, extra=options)
    with (
        as_service(site, "serve", fleet, "--json", log="serve", abstract=True) as (serve, of_serve),
        as_service(site, "agent", site.write_agent("north"), "--json", log="north") as (
            agent,
            of_agent,
        ),
    ):
        assert of_serve.next() == "READY=1"
        assert any(e["event"] == "serving" for e in site.events("serve"))
        assert of_agent.next() == "READY=1"
        encodes = of_agent.wait_for("STATUS=")
        assert encodes == "STATUS=encodes its pictures: 8 of 36 done", encodes
        of_agent.wait_for("STATUS=run-")
        of_serve.wait_for("WATCHDOG=1")
        of_agent.wait_for("WATCHDOG=1")
        status = of_serve.wait_for("STATUS=run-")
        assert status.endswith((" 1 device online", " 0 devices online")), status
        for process, socket in ((agent, of_agent), (serve, of_serve)):
            process.send_signal(signal.SIGTERM)
            socket.wait_for("STOPPING=1")
            assert process.wait(system.DEADLINE_S) == 0


def test_the_programs_of_a_trainer_are_silent(site: Site) -> None:
    """Its messages would be taken for those of the coordinator."""
    site.write_agent("judge")
    fleet = site.write_fleet(devices=1, rounds=1, extra='[trainer]\nconfig = "judge/agent.toml"\n')
    with as_service(site, "serve", "--once", fleet, "--json", log="serve") as (serve, socket):
        assert serve.wait(system.DEADLINE_S) == 0, site.text("serve")
        while socket.next(0) is not None:
            pass
        assert [message for message in socket.seen if message == "READY=1"] == ["READY=1"]
        assert not any("encodes" in message for message in socket.seen)


def test_a_loop_that_hangs_gives_no_sign_of_life(site: Site) -> None:
    """The journal is locked by another program, so the main loop waits in the middle of a write.

    The threads of the link go on meanwhile.
    """
    fleet = site.write_fleet(devices=1, rounds=10_000)
    with as_service(site, "serve", fleet, "--json", log="serve") as (serve, socket):
        socket.wait_for("READY=1")
        socket.wait_for("WATCHDOG=1")
        with contextlib.closing(sqlite3.connect(site.folder / "journal.sqlite")) as other:
            other.execute("BEGIN IMMEDIATE")
            agent = site.start("agent", site.write_agent("north"), "--json", log="north")
            # Its key is pinned at its hello. A few signs of life may come before that.
            deadline = time.monotonic() + system.DEADLINE_S
            quiet_since = time.monotonic()
            while time.monotonic() - quiet_since < QUIET_S:
                assert time.monotonic() < deadline, "the loop never hung"
                if socket.next(0.1) == "WATCHDOG=1":
                    quiet_since = time.monotonic()
            assert serve.poll() is None
            other.rollback()
        socket.wait_for("WATCHDOG=1")
        wait_until(
            lambda: any(e["event"] == "round_closed" for e in site.events("serve")), "a round"
        )
        for process in (agent, serve):
            process.send_signal(signal.SIGTERM)
            assert process.wait(system.DEADLINE_S) == 0


def test_an_agent_that_encodes_gives_signs_of_life(site: Site) -> None:
    config = site.write_agent("north", per_class=700)
    with as_service(site, "agent", config, "--json", log="north") as (agent, socket):
        socket.wait_for("WATCHDOG=1")
        assert not any(e["event"] == "features_ready" for e in site.events("north"))
        os.kill(agent.pid, signal.SIGTERM)
        assert agent.wait(system.DEADLINE_S) == 0


def allowed_calls(group: str) -> set[str]:
    """The names of all system calls in one of systemd's groups, such as "@system-service"."""
    command = ["systemd-analyze", "syscall-filter", group]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = set[str]()
    for name in map(str.strip, lines[1:]):
        if name.startswith("@"):
            found |= allowed_calls(name)
        elif name and not name.startswith("#"):
            found.add(name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("strace") and shutil.which("systemd-analyze")),
    reason="strace or systemd-analyze is not installed",
)
def test_the_coordinators_unit_allows_every_system_call_of_serve_and_its_trainer(
    site: Site,
) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read(ROOT / "coordinator" / "fedclip-edge-coordinator.service")
    site.write_agent("judge")
    fleet = site.write_fleet(devices=1, rounds=2, extra='[trainer]\nconfig = "judge/agent.toml"\n')
    counts = site.folder / "calls"
    trace = ["strace", "-f", "-qq", "-c", "-U", "name", "-o", str(counts)]
    serve = site.start_program([*trace, *system.command("serve", "--once", fleet)], "serve")
    assert serve.wait(3 * system.DEADLINE_S) == 0, site.text("serve")
    used = set(counts.read_text().split())
    assert {"openat", "futex", "socket"} <= used
    used = {name for name in used if name.isidentifier()} - {"name", "syscall", "total"}
    assert used <= allowed_calls(unit["Service"]["SystemCallFilter"])
