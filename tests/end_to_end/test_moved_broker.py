"""A fleet whose broker gets a new address in the middle of a run."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import brokers
import pytest
import system
from brokers import MOSQUITTO, free_port
from secured import Secured, write_agent, write_fleet
from system import Site, wait_until

from fedclip_edge.vision.bundle import Bundle

pytestmark = [
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed"),
    pytest.mark.one_python,
]


class Moving:
    """A fleet with a broker at one port, which moves to another."""

    def __init__(self, secured: Secured, site: Site, bundle: Bundle) -> None:
        self.secured, self.site = secured, site
        self.new_port = free_port()
        self.fleet = write_fleet(secured, bundle, 100_000)
        self.boxes = [write_agent(secured, bundle, name) for name in ("cam-01", "cam-02")]

    def count(self, log: str, event: str) -> int:
        return sum(e["event"] == event for e in self.site.events(log))

    def said(self, log: str, event: str) -> None:
        wait_until(lambda: self.count(log, event) > 0, f"{event} in {log}")

    def serve(self, log: str) -> subprocess.Popen[bytes]:
        started = self.site.start("serve", self.fleet, "--json", log=log)
        self.said(log, "serving")
        return started

    def agent(self, number: int, log: str) -> subprocess.Popen[bytes]:
        return self.site.start("agent", self.boxes[number], "--json", log=log)

    def move(self) -> None:
        port = str(self.new_port)
        command = ("broker", "move", self.secured.site.path, "--host", "127.0.0.1", "--port", port)
        said = system.run(*command)
        assert said.returncode == 0, said.stderr
        assert said.stdout.startswith(f"the broker of lab moves to 127.0.0.1:{port}\n1  copy ")

    def point_serve_to_the_new_address(self) -> None:
        text = self.fleet.read_text()
        self.fleet.write_text(
            text.replace(f"port = {self.secured.port}", f"port = {self.new_port}")
        )


@pytest.fixture
def moving(tmp_path: Path, random_bundle: Bundle) -> Iterator[Moving]:
    with (
        Secured(tmp_path) as secured,
        Site(tmp_path, random_bundle, secured.coordinator, "lab") as site,
    ):
        secured.start()
        yield Moving(secured, site, random_bundle)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(system.DEADLINE_S) == 0


def test_devices_follow_the_broker_to_its_new_address(moving: Moving, tmp_path: Path) -> None:
    serve = moving.serve("serve")
    moving.agent(0, "stays")
    away = moving.agent(1, "away")
    moving.said("serve", "round_closed")
    stop(away)
    moving.move()
    moving.said("stays", "broker_moved")
    assert moving.count("stays", "broker_switched") == 0  # the coordinator is still here
    words = ["-v", "-c", str(moving.secured.settings)]
    new = brokers.start(words, tmp_path / "new-broker.log")
    try:
        assert brokers.wait_until_served(new, moving.new_port)
        stop(serve)
        moving.point_serve_to_the_new_address()
        again = moving.serve("again")
        moving.said("stays", "broker_switched")
        moving.said("again", "round_closed")
        # A device that was away finds the notice at the old broker.
        back = moving.agent(1, "back")
        moving.said("back", "broker_switched")
        moving.said("back", "trained")
        stop(back)
        # It needs the old broker no more.
        moving.secured.stop()
        later = moving.agent(1, "later")
        moving.said("later", "trained")
        assert moving.count("later", "broker_switched") == 0
        for process in (later, again):
            stop(process)
    finally:
        brokers.stop(new)


def test_a_wrong_address_cuts_off_no_device(moving: Moving) -> None:
    """Nothing listens at the new address, and `serve` stays at the old one."""
    serve = moving.serve("serve")
    moving.agent(0, "stays")
    other = moving.agent(1, "other")
    moving.said("serve", "round_closed")
    moving.move()
    for log in ("stays", "other"):
        moving.said(log, "broker_moved")
    stop(other)
    stop(serve)
    wait_until(lambda: moving.count("stays", "broker_switched") >= 2, "the way there and back")
    moving.serve("again")
    # A restarted device tries the new address first, and then the old one.
    moving.agent(1, "starts")
    moving.said("starts", "broker_switched")
    moving.said("starts", "trained")
    moving.said("again", "round_closed")
