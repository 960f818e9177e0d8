"""Coordinator and agents as processes, with the certificates and files of `broker init`."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import slow_agent
import system
from brokers import MOSQUITTO
from secured import Secured, complete, write_agent, write_fleet
from system import Site, wait_until

from fedclip_edge.errors import RefusedError
from fedclip_edge.vision.bundle import Bundle

pytestmark = [
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed"),
    pytest.mark.one_python,
]


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    with Secured(tmp_path) as made:
        made.start()
        yield made


@pytest.fixture
def site(secured: Secured, random_bundle: Bundle) -> Iterator[Site]:
    with Site(secured.folder, random_bundle, secured.coordinator, "lab") as made:
        yield made


def test_a_fleet_with_certificates_runs_and_a_revoked_device_ends(
    secured: Secured, site: Site, random_bundle: Bundle
) -> None:
    agents = {name: write_agent(secured, random_bundle, name) for name in ("cam-01", "cam-02")}
    serve = site.start(
        "serve", "--once", write_fleet(secured, random_bundle, 200), "--json", log="serve"
    )
    stays = site.start("agent", agents["cam-01"], "--once", "--json", log="cam-01")
    gone = site.start("agent", agents["cam-02"], "--json", log="cam-02")

    def closed() -> int:
        return sum(event["event"] == "round_closed" for event in site.events("serve"))

    wait_until(lambda: closed() > 0, "the first round to close")
    folder = secured.site.path
    said = system.run("revoke", "cam-02", "--site", folder)
    assert said.returncode == 0, said.stderr
    assert f"127.0.0.1:{secured.port} refuses its certificates from now on (checked)" in said.stdout
    assert gone.wait(system.DEADLINE_S) == RefusedError.exit_code
    assert "revoked" in site.text("cam-02").splitlines()[-1]
    refused = [e for e in site.events("serve") if e["event"] == "device_refused"]
    assert (refused[0]["device"], refused[0]["reason"]) == ("cam-02", "it was revoked")
    assert serve.wait(system.DEADLINE_S) == 0, site.text("serve")
    assert stays.wait(system.DEADLINE_S) == 0, site.text("cam-01")
    again = system.run("agent", agents["cam-02"], "--once")
    assert again.returncode == RefusedError.exit_code
    assert "this device's certificate was revoked" in again.stderr
    assert (secured.folder / "cam-01" / "state" / "device.key").exists() is False


def test_a_box_whose_archive_is_lost_comes_back_under_its_id_with_a_new_key(
    secured: Secured, site: Site, random_bundle: Bundle
) -> None:
    agents = {name: write_agent(secured, random_bundle, name) for name in ("cam-01", "cam-02")}
    serve = site.start(
        "serve", "--once", write_fleet(secured, random_bundle, 200), "--json", log="serve"
    )
    other = site.start("agent", agents["cam-01"], "--once", "--json", log="cam-01")
    old = site.start("agent", agents["cam-02"], "--json", log="old")

    def closed() -> int:
        return sum(event["event"] == "round_closed" for event in site.events("serve"))

    wait_until(lambda: closed() > 0, "the first round to close")
    other.terminate()  # so the run cannot end before the box is back
    other.wait(system.DEADLINE_S)
    archive = secured.folder / "again.tar"
    folder = secured.site.path
    said = system.run("enroll", "--again", "cam-02", "--out", archive, "--site", folder)
    assert said.returncode == 0, said.stderr
    assert "cam-02 has a new key; its earlier certificates are revoked" in said.stdout
    assert "refuses the earlier certificates from now on (checked)" in said.stdout
    assert old.wait(system.DEADLINE_S) == RefusedError.exit_code
    again = system.run("agent", agents["cam-02"], "--once")
    assert again.returncode == RefusedError.exit_code
    assert "this device's certificate was revoked" in again.stderr
    with tarfile.open(archive) as tar:
        tar.extractall(secured.folder / "again", filter="data")
    new = site.start(
        "agent", complete(secured.folder / "again", random_bundle, "new"), "--once", log="new"
    )
    assert serve.wait(system.DEADLINE_S) == 0, site.text("serve")
    assert new.wait(system.DEADLINE_S) == 0, site.text("new")
    assert "trained" in site.text("new")
    refused = [e for e in site.events("serve") if e["event"] == "device_refused"]
    assert {e["reason"] for e in refused} == {"its key is not the one that it was enrolled with"}
    assert {e["device"] for e in refused} == {"cam-02"}


def start_slow_agent(site: Site, config: Path) -> subprocess.Popen[bytes]:
    """An agent that needs some seconds for its 36 pictures."""
    words = [sys.executable, slow_agent.__file__, "0.4", "-", str(config)]
    return site.start_program(words, "agent")


def has(site: Site, log: str, event: str) -> bool:
    return any(one["event"] == event for one in site.events(log))


def wait_for(site: Site, log: str, event: str) -> None:
    wait_until(lambda: has(site, log, event), f"{event} in the log of {log}")


@pytest.mark.parametrize("command", [("revoke", "cam-01"), ("enroll", "--again", "cam-01")])
def test_a_device_that_is_refused_while_it_encodes_ends(
    secured: Secured, site: Site, random_bundle: Bundle, command: tuple[str, ...]
) -> None:
    config = write_agent(secured, random_bundle, "cam-01")
    serve = site.start(
        "serve", "--once", write_fleet(secured, random_bundle, 1), "--json", log="serve"
    )
    agent = start_slow_agent(site, config)
    wait_for(site, "serve", "device_encodes")
    out = ("--out", secured.folder / "new.tar") if command[0] == "enroll" else ()
    said = system.run(*command, *out, "--site", secured.site.path)
    assert said.returncode == 0, said.stderr
    assert agent.wait(system.DEADLINE_S) == RefusedError.exit_code
    assert "this device's certificate was revoked" in site.text("agent").splitlines()[-1]
    assert "features_ready" not in site.text("agent")
    assert has(site, "serve", "device_refused")
    assert serve.poll() is None


def test_a_device_that_encodes_says_at_once_that_the_broker_is_gone(
    secured: Secured, site: Site, random_bundle: Bundle
) -> None:
    config = write_agent(secured, random_bundle, "cam-01")
    site.start("serve", "--once", write_fleet(secured, random_bundle, 1), "--json", log="serve")
    start_slow_agent(site, config)
    wait_for(site, "serve", "device_encodes")
    secured.stop()
    wait_for(site, "agent", "features_ready")
    before = [e["event"] for e in site.events("agent")]
    assert before.index("link_lost") < before.index("broker_not_reached")
    assert before.index("broker_not_reached") < before.index("features_ready")
    secured.start()
    wait_for(site, "serve", "joined")
    assert not has(site, "agent", "connected")
    assert sum(e["event"] == "link_lost" for e in site.events("agent")) == 1


def test_serve_names_the_devices_whose_certificates_end_soon(
    secured: Secured, site: Site, random_bundle: Bundle
) -> None:
    for name, days in (("cam-01", 700), ("cam-02", 9), ("cam-03", 3)):
        secured.box(name, days=days)
    site.start("serve", "--once", write_fleet(secured, random_bundle, 1), "--json", log="serve")
    ends = "certificate_ends"
    wait_until(lambda: any(e["event"] == ends for e in site.events("serve")), ends)
    said = [event for event in site.events("serve") if event["event"] == ends]
    assert len(said) == 1  # the authority and the coordinator's certificate are valid for long
    assert [word.partition(" ")[0] for word in said[0]["devices"].split(", ")] == [
        "cam-03",
        "cam-02",
    ]
    assert said[0]["days_left"] in (2, 3)
