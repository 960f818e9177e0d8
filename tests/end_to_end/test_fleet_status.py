"""An operator looks at a fleet of real processes from a shell: while it runs, and afterwards."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import system
from brokers import MOSQUITTO
from system import Site, wait_until
from terminal import shown_on_terminal

from fedclip_edge import __version__
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import ConfigError, LinkError
from fedclip_edge.vision.bundle import Bundle

pytestmark = [
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed"),
    pytest.mark.one_python,
]


@pytest.fixture
def site(tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress) -> Iterator[Site]:
    with Site(tmp_path, random_bundle, mosquitto, "watched") as made:
        yield made


def asked(*words: str | Path) -> dict[str, Any]:
    done = system.run(*words, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def contents(folder: Path) -> dict[str, str]:
    """The files in a folder, without those of the logs, by name."""
    files = (path for path in folder.iterdir() if path.is_file() and path.suffix != ".log")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_fleet_is_seen_while_it_runs_and_after_it_has_ended(site: Site) -> None:
    fleet = site.write_fleet(2, 3)
    agents = [site.write_agent(name) for name in ("cam-01", "camera-02")]
    none = system.run("status", fleet)
    assert none.returncode == LinkError.exit_code
    assert "no coordinator serves behind" in none.stderr
    no_runs = system.run("runs", fleet)
    assert no_runs.returncode == ConfigError.exit_code
    assert "there is no journal" in no_runs.stderr

    serve = site.start("serve", fleet, "--json", log="serve")
    site.start("agent", agents[0], "--json", log="cam-01")
    wait_until(
        lambda: any(event["event"] == "joined" for event in site.events("serve")), "a device"
    )
    found = asked("status", fleet)
    assert (found["run"]["phase"], found["waiting"]["needs"]) == ("gathering", 2)
    text = system.run("status", fleet).stdout
    assert "1 of 2 devices that it needs are online" in " ".join(text.split())

    site.start("agent", agents[1], "--json", log="camera-02")
    wait_until(
        lambda: any(event["event"] == "report_written" for event in site.events("serve")),
        "the end of the run",
    )
    found = asked("status", fleet)
    assert (found["run"]["state"], found["counts"]["online"]) == ("done", 2)
    # The devices have sent it their updates, and it has sent them models.
    assert all(found["traffic"][way] > found["run"]["model_bytes"] for way in ("up", "down"))
    assert found["next"] == {"at": None, "new_pictures": None, "has_new_pictures": None}
    devices = {one["id"]: one for one in asked("devices", fleet)["devices"]}
    assert set(devices) == {"cam-01", "camera-02"}
    assert all(one["contributions"] == 3 for one in devices.values())
    assert {one["version"] for one in devices.values()} == {__version__}
    one = asked("devices", fleet, "--device", "cam-01")
    assert sum(one["pictures_by_class"]["train"]) == one["pictures"]["train"]
    wrong = system.run("devices", fleet, "--device", "cam-1")
    assert wrong.returncode == ConfigError.exit_code
    assert "did you mean 'cam-01'?" in wrong.stderr
    shown = shown_on_terminal(system.command("devices", fleet), 80)
    assert "camera-02" in shown
    assert site.bundle.classes.names[0] in system.run("devices", fleet, "--classes").stdout
    listed = system.run("runs", fleet, "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    (run,) = json.loads(listed.stdout)["runs"]
    assert (run["state"], run["rounds_closed"], run["devices"]) == ("done", 3, 2)

    started = system.run("run", "start", fleet)
    assert started.returncode == 0, started.stderr
    wait_until(
        lambda: sum(event["event"] == "report_written" for event in site.events("serve")) == 2,
        "the end of the second run",
    )
    second, first = (
        asked("run", "show", one["run"], "--config", fleet) for one in asked("runs", fleet)["runs"]
    )
    assert first["run"] == run["run"]
    for name in devices:
        once, again = first["devices"][name], second["devices"][name]
        assert (once["encoded"] > 0, again["encoded"]) == (True, 0), "it is in the cache"
        # The agent counts from its start, so its count is at least twice as high by now.
        assert again["bytes_up_per_round"] < 1.5 * once["bytes_up_per_round"]

    serve.send_signal(signal.SIGTERM)
    assert serve.wait(system.DEADLINE_S) == 0, site.text("serve")
    before = contents(site.folder)
    assert [one["run"] for one in asked("runs", fleet)["runs"]] == [second["run"], run["run"]]
    written = json.loads((site.folder / "reports" / f"{run['run']}.json").read_text())
    assert asked("run", "show", run["run"], "--config", fleet) == written
    shown_run = system.run("run", "show", run["run"], "--config", fleet)
    assert "no coordinator serves from this journal now" in shown_run.stderr
    text = shown_run.stdout
    assert "the mean accuracy of the devices" in text
    assert contents(site.folder) == before, "a command that only reads has changed a file"
    page = (site.folder / "reports" / f"{run['run']}.html").read_text()
    assert f"{run['run']} of the fleet watched" in page
    wrong = system.run("run", "show", run["run"][:-1], "--config", fleet)
    assert wrong.returncode == ConfigError.exit_code
    assert f"did you mean {run['run']!r}?" in wrong.stderr


def test_watch_waits_for_a_coordinator_and_ends_with_ctrl_c(site: Site) -> None:
    fleet = site.write_fleet(2, 3)
    words = system.command("watch", fleet, "--json")
    with system.running(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        assert "no coordinator serves" in json.loads(system.line_of(watch))["error"]
        site.start("serve", fleet, "--json", log="serve")
        found: dict[str, Any] = {}
        while "run" not in found:  # `running` kills it after its timeout, which ends the output
            found = json.loads(system.line_of(watch))
        assert found["fleet"] == "watched"
        watch.send_signal(signal.SIGINT)
        _, errors = watch.communicate(timeout=system.DEADLINE_S)
        assert (watch.returncode, errors) == (0, "")
