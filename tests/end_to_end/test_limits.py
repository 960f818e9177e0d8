"""Limits of a box, with a real fleet: a hot device pauses, and SIGHUP changes its settings."""

from __future__ import annotations

import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import system
from system import Site, wait_until

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.vision.bundle import Bundle

pytestmark = [
    pytest.mark.one_python,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]
AGENT = Path(system.__file__).with_name("agent_with_sensors.py")
CHILD = "fedclip_edge.processes.worker_child"


@pytest.fixture
def site(tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress) -> Iterator[Site]:
    with Site(tmp_path, random_bundle, mosquitto, f"lab-{secrets.token_hex(4)}") as made:
        yield made


def said(site: Site, log: str, name: str, times: int = 1) -> dict[str, Any]:
    def found() -> list[dict[str, Any]]:
        return [event for event in site.events(log) if event["event"] == name]

    wait_until(lambda: len(found()) >= times, f"{name} in the log of {log}")
    return found()[times - 1]


def heat(site: Site, degrees: int) -> None:
    zone = site.folder / "sensors" / "thermal" / "thermal_zone0"
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "temp").write_text(f"{degrees * 1000}\n")


def start(site: Site, config: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, str(AGENT), str(config), str(site.folder / "sensors")]
    return site.start_program(words, config.parent.name)


def states_of_children(agent: subprocess.Popen[bytes]) -> set[str]:
    return {
        system.of_process(pid, "stat").rpartition(")")[2].split()[0]
        for pid in system.descendants(agent.pid)
        if CHILD in system.of_process(pid, "cmdline")
    }


def add_limits(config: Path, text: str) -> None:
    config.write_text(f"{config.read_text()}[limits]\n{text}\n")


def test_a_hot_device_leaves_the_round_and_takes_part_again_when_it_is_cooler(site: Site) -> None:
    heat(site, 50)
    config = site.write_agent("hot")
    add_limits(config, "max_temperature_c = 80")
    fleet = site.write_fleet(devices=1, rounds=1, extra="[plan.options]\nepochs = 20000\n")
    site.start("serve", fleet, "--json", log="serve")
    agent = start(site, config)
    said(site, "serve", "joined")
    said(site, "hot", "torch_loaded")  # the round trains
    heat(site, 90)
    paused = said(site, "hot", "work_paused")
    assert paused["reason"] == "the box has 90 degrees, and max_temperature_c is 80"
    assert said(site, "serve", "left")["reason"] == paused["reason"]
    wait_until(lambda: "T" in states_of_children(agent), "the stop of the trainer")
    assert agent.poll() is None
    heat(site, 60)
    said(site, "hot", "work_resumed")
    said(site, "serve", "joined", times=2)
    wait_until(lambda: "T" not in states_of_children(agent), "the end of the stop")
    assert not any(event["event"] == "not_in_run" for event in site.events("hot"))


def test_a_box_that_is_hot_at_the_start_encodes_when_it_is_cooler(site: Site) -> None:
    heat(site, 90)
    config = site.write_agent("hot")
    add_limits(config, "max_temperature_c = 80")
    fleet = site.write_fleet(devices=1, rounds=1)
    site.start("serve", fleet, "--json", log="serve")
    agent = start(site, config)
    said(site, "hot", "work_paused")
    said(site, "serve", "device_encodes")
    shown = system.run("devices", fleet).stdout
    assert re.search(r"hot +paused", shown), shown
    assert "the box has 90 degrees" in shown
    assert not any(event["event"] == "features_ready" for event in site.events("hot"))
    heat(site, 60)
    said(site, "hot", "connected")
    assert said(site, "hot", "features_ready")["encoded"] == 36
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(system.DEADLINE_S) == 0


def test_sighup_uses_new_settings_and_keeps_the_process(site: Site) -> None:
    heat(site, 70)
    config = site.write_agent("north")
    ignored = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    agent = start(site, config)
    signal.signal(signal.SIGHUP, ignored)
    said(site, "north", "connected")
    good = config.read_text()

    config.write_text(f"{good}[limits]\nmax_temperature_c = 60\n")
    agent.send_signal(signal.SIGHUP)
    assert said(site, "north", "settings_read")["changed"] == "limits"
    said(site, "north", "work_paused")
    config.write_text(good)
    agent.send_signal(signal.SIGHUP)
    said(site, "north", "work_resumed")

    system.write_pictures(config.parent / "more", site.bundle.classes.names, 5, seed=9)
    config.write_text(good.replace('"pictures"', '"more"'))
    agent.send_signal(signal.SIGHUP)
    assert said(site, "north", "features_ready", times=2)["encoded"] == 15
    said(site, "north", "connected", times=2)

    config.write_text(good.replace('"pictures"', '"nothing"'))
    agent.send_signal(signal.SIGHUP)
    assert "nothing does not exist" in said(site, "north", "settings_not_used")["reason"]
    said(site, "north", "connected", times=3)
    assert said(site, "north", "features_ready", times=3)["cached"] == 15

    config.write_text("id = ")
    agent.send_signal(signal.SIGHUP)
    said(site, "north", "settings_not_used", times=2)
    assert agent.poll() is None


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a signal of Unix")
def test_an_agent_that_is_killed_leaves_no_stopped_child(site: Site) -> None:
    heat(site, 50)
    config = site.write_agent("hot")
    add_limits(config, "max_temperature_c = 80")
    fleet = site.write_fleet(devices=1, rounds=1, extra="[plan.options]\nepochs = 1000000\n")
    site.start("serve", fleet, "--json", log="serve")
    agent = start(site, config)
    said(site, "hot", "torch_loaded")
    heat(site, 90)
    wait_until(lambda: "T" in states_of_children(agent), "the stop of the trainer")
    children = system.descendants(agent.pid)
    agent.kill()
    agent.wait()
    wait_until(
        lambda: not any(CHILD in system.of_process(pid, "cmdline") for pid in children),
        "the end of the child",
    )
