"""A fleet whose coordinator gets a new key in the middle of a run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import system
from brokers import MOSQUITTO
from secured import Secured, write_agent, write_fleet
from system import Site, wait_until

from fedclip_edge.errors import ConfigError
from fedclip_edge.vision.bundle import Bundle

pytestmark = [
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed"),
    pytest.mark.one_python,
]
ROUNDS = 100_000


def test_devices_follow_the_coordinator_to_its_new_key(
    tmp_path: Path, random_bundle: Bundle
) -> None:
    with (
        Secured(tmp_path) as secured,
        Site(tmp_path, random_bundle, secured.coordinator, "lab") as site,
    ):
        secured.start()
        stays, sleeps = (write_agent(secured, random_bundle, f"cam-0{n}") for n in (1, 2))
        fleet = write_fleet(secured, random_bundle, ROUNDS)
        serve = site.start("serve", fleet, "--json", log="serve")
        site.start("agent", stays, "--json", log="stays")
        away = site.start("agent", sleeps, "--json", log="away")

        def count(log: str, event: str) -> int:
            return sum(e["event"] == event for e in site.events(log))

        wait_until(lambda: count("serve", "round_closed") > 0, "a round with the first key")
        away.send_signal(signal.SIGTERM)
        assert away.wait(system.DEADLINE_S) == 0
        said = system.run("broker", "rotate", secured.site.path)
        assert said.returncode == 0, said.stderr
        assert said.stdout.startswith("the coordinator has a new key: ")
        assert "refuses the certificates of the earlier key from now on (checked)" in said.stdout
        serve.send_signal(signal.SIGTERM)
        assert serve.wait(system.DEADLINE_S) == 0
        # The second key is never used: the device that was away must follow two statements.
        said = system.run("broker", "rotate", secured.site.path)
        assert said.returncode == 0, said.stderr
        again = site.start("serve", fleet, "--json", log="again")
        wait_until(lambda: count("stays", "coordinator_key_replaced") == 1, "the new key")
        wait_until(lambda: count("again", "round_closed") > 0, "a round with the new key")
        back = site.start("agent", sleeps, "--json", log="back")
        wait_until(lambda: count("back", "coordinator_key_replaced") == 1, "the new key there")
        wait_until(lambda: count("back", "trained") > 0, "a round of the device that was away")
        # After a restart it knows the key.
        back.send_signal(signal.SIGTERM)
        assert back.wait(system.DEADLINE_S) == 0
        once_more = site.start("agent", sleeps, "--json", log="knows")
        wait_until(lambda: count("knows", "trained") > 0, "a round after a restart")
        assert count("knows", "coordinator_key_replaced") == 0
        assert count("knows", "message_refused") == 0
        for process in (once_more, again):
            process.send_signal(signal.SIGTERM)
            assert process.wait(system.DEADLINE_S) == 0


def test_a_copy_with_the_earlier_key_does_not_start(tmp_path: Path, random_bundle: Bundle) -> None:
    with Secured(tmp_path) as secured:
        secured.start()
        key = secured.site.coordinator / "coordinator.key"
        old = key.read_bytes()
        assert system.run("broker", "rotate", secured.site.path).returncode == 0
        key.write_bytes(old)
        said = system.run("serve", write_fleet(secured, random_bundle, 1))
        assert said.returncode == ConfigError.exit_code
        assert "is not the key that" in said.stderr
        assert "copy coordinator.key, coordinator.crt and devices.json together" in said.stderr
