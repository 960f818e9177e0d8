"""The agent's encoder and trainer: memory that is given back, kills, and ends of the agent."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import system
from notify_socket import notify_socket
from system import Site, wait_until

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.vision.bundle import Bundle

pytestmark = [
    pytest.mark.one_python,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]
LONG = "[plan.options]\nepochs = 1000000\n"  # a round that does not end
HASTY = Path(system.__file__).with_name("hasty_agent.py")
CHILD = "fedclip_edge.processes.worker_child"


@pytest.fixture
def site(tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress) -> Iterator[Site]:
    with Site(tmp_path, random_bundle, mosquitto, f"lab-{secrets.token_hex(4)}") as made:
        yield made


def events(site: Site, log: str, name: str) -> list[dict[str, object]]:
    return [event for event in site.events(log) if event["event"] == name]


def said(site: Site, log: str, name: str, times: int = 1) -> None:
    wait_until(lambda: len(events(site, log, name)) >= times, f"{name} in the log of {log}")


def children_of(agent: subprocess.Popen[bytes]) -> set[int]:
    """The encoder and trainer processes of an agent."""
    return {
        pid for pid in system.descendants(agent.pid) if CHILD in system.of_process(pid, "cmdline")
    }


def add_picture(site: Site, name: str) -> None:
    """Copy a picture with other bytes, so that it has to be encoded."""
    folder = next((site.folder / name / "pictures").iterdir())
    picture = next(folder.iterdir())
    (folder / "new.png").write_bytes(picture.read_bytes() + b"\n")


def test_an_agent_that_waits_has_no_child_and_each_starts_again_when_it_is_needed(
    site: Site,
) -> None:
    fleet = site.write_fleet(devices=1, rounds=1)
    agent = site.start_program(
        [sys.executable, str(HASTY), str(site.write_agent("north"))], "north"
    )
    said(site, "north", "connected")
    wait_until(lambda: not system.descendants(agent.pid), "the encoder's end")
    maps = system.of_process(agent.pid, "maps")
    for number in (1, 2):
        assert (
            site.start("serve", "--once", fleet, "--json", log=f"serve-{number}").wait(
                system.DEADLINE_S
            )
            == 0
        )
        said(site, "north", "run_done", times=number)
        wait_until(lambda: not system.descendants(agent.pid), "the trainer's end")
        maps += system.of_process(agent.pid, "maps")
        (site.folder / "journal.sqlite").rename(site.folder / f"journal-{number}.sqlite")
        add_picture(site, "north")
    assert "numpy" in maps
    assert "libtorch" not in maps
    assert "onnxruntime" not in maps
    assert "PIL/_imaging" not in maps
    assert len(events(site, "north", "torch_loaded")) == 2
    assert [event["added"] for event in events(site, "north", "pictures_changed")] == [1]


def test_duties_go_on_while_a_round_trains(site: Site) -> None:
    """A sign of life to systemd is one of them."""
    fleet = site.write_fleet(devices=1, rounds=1, extra=LONG)
    place = site.folder / "of-north"
    place.mkdir()
    with notify_socket(place) as socket:
        words = ["env", f"NOTIFY_SOCKET={socket.name}", "WATCHDOG_USEC=4000000"]
        config = site.write_agent("north")
        agent = site.start_program([*words, *system.command("agent", config, "--json")], "north")
        site.start("serve", "--once", fleet, "--json", log="serve")
        said(site, "north", "torch_loaded")
        while socket.next(0) is not None:
            pass
        socket.seen.clear()
        for _ in range(3):
            socket.wait_for("WATCHDOG=1")
        assert not events(site, "north", "trained")
        agent.kill()


def test_a_device_follows_its_run_while_it_trains(site: Site) -> None:
    """It joins a coordinator that restarted, and ends its training with the run."""
    fleet = site.write_fleet(devices=1, rounds=1, extra=LONG)
    # A device alone would train as long.
    fleet.write_text(fleet.read_text().replace("local_baseline = true", "local_baseline = false"))
    agent = site.start("agent", site.write_agent("north"), "--json", log="north")
    serve = site.start("serve", fleet, "--json", log="serve")
    said(site, "north", "torch_loaded")
    serve.send_signal(signal.SIGTERM)
    assert serve.wait(system.DEADLINE_S) == 0, site.text("serve")
    site.start("serve", fleet, "--json", log="serve-2")
    said(site, "serve-2", "joined")
    assert len(events(site, "north", "torch_loaded")) == 1, "the training goes on"
    trainer = {pid for pid in children_of(agent) if "libtorch" in system.of_process(pid, "maps")}
    assert len(trainer) == 1
    done = system.run("run", "abandon", fleet)
    assert done.returncode == 0, done.stderr
    said(site, "north", "work_dropped")
    said(site, "north", "evaluated")
    assert not trainer & children_of(agent)
    assert not events(site, "north", "trained")
    assert agent.poll() is None


def test_a_killed_trainer_is_replaced_and_the_round_is_trained(site: Site) -> None:
    fleet = site.write_fleet(devices=1, rounds=1, extra="[plan.options]\nepochs = 300\n")
    agent = site.start("agent", site.write_agent("north"), "--once", "--json", log="north")
    said(site, "north", "connected")
    site.start("serve", "--once", fleet, "--json", log="serve")
    said(site, "north", "torch_loaded")
    (trainer,) = (pid for pid in children_of(agent) if "libtorch" in system.of_process(pid, "maps"))
    os.kill(trainer, signal.SIGKILL)
    assert agent.wait(system.DEADLINE_S) == 0, site.text("north")
    (died,) = events(site, "north", "worker_died")
    assert (died["worker"], died["reason"]) == ("trainer", "was killed by SIGKILL")
    assert len(events(site, "north", "trained")) == 1


def test_an_agent_whose_trainer_dies_again_stands_by_and_lives(site: Site) -> None:
    fleet = site.write_fleet(devices=1, rounds=1, extra=LONG)
    agent = site.start("agent", site.write_agent("north"), "--json", log="north")
    site.start("serve", "--once", fleet, "--json", log="serve")
    for number in (1, 2):
        said(site, "north", "torch_loaded", times=number)
        for pid in children_of(agent):
            if "libtorch" in system.of_process(pid, "maps"):
                os.kill(pid, signal.SIGKILL)
    said(site, "north", "not_in_run")
    (event,) = events(site, "north", "not_in_run")
    assert "the trainer process was killed by SIGKILL, twice in a row" in str(event["reason"])
    assert agent.poll() is None
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(system.DEADLINE_S) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_child_outlives_its_agent(site: Site, number: signal.Signals) -> None:
    fleet = site.write_fleet(devices=1, rounds=1, extra=LONG)
    agent = site.start("agent", site.write_agent("north"), "--json", log="north")
    site.start("serve", "--once", fleet, "--json", log="serve")
    said(site, "north", "torch_loaded")
    children = children_of(agent)
    assert children
    agent.send_signal(number)
    agent.wait(15.0)
    wait_until(
        lambda: not any(CHILD in system.of_process(pid, "cmdline") for pid in children),
        "the end of the children",
    )
