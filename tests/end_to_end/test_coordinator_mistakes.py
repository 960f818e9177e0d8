"""Mistakes at the coordinator: devices wait for their correction, and none needs a restart."""

from __future__ import annotations

import dataclasses
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slow_agent
import system
from brokers import MOSQUITTO
from secured import Secured
from system import Site, wait_until

from fedclip_edge.errors import ConfigError, RefusedError
from fedclip_edge.records import ClassTexts
from fedclip_edge.vision.bundle import Bundle, write_bundle

pytestmark = [
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed"),
    pytest.mark.one_python,
]


def events(site: Site, log: str, name: str) -> list[dict[str, Any]]:
    return [event for event in site.events(log) if event["event"] == name]


def other_bundle(site: Site, changed: str) -> Bundle:
    theirs, classes = site.bundle, site.bundle.classes
    manifest = dataclasses.replace(theirs.manifest, files={})
    if changed == "encoder":
        pixels = theirs.manifest.preprocessing
        shifted = dataclasses.replace(pixels, mean=(0.4, *pixels.mean[1:]))
        manifest = dataclasses.replace(manifest, preprocessing=shifted)
    else:
        vectors = np.eye(3, 16, dtype=np.float32)
        classes = ClassTexts(("circle", "hexagon", "square"), vectors, 100.0, "a {}")
    folder = site.folder / f"other-{changed}"
    return write_bundle(
        folder, manifest, theirs.encoder_path.read_bytes(), classes, theirs.golden()
    )


WRONG = {
    "encoder": ("its bundle has another encoder", None, None),
    "classes": ("its bundle has other classes", "hexagon", "triangle"),
    "method": ("and the device allows only: fedclip, ridge", None, None),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_devices_wait_for_the_correction_and_take_part_at_once(site: Site, wrong: str) -> None:
    right = site.write_fleet(devices=2, rounds=2).read_text()
    fleet = site.folder / "fleet.toml"
    if wrong == "method":
        fleet.write_text(right.replace('method = "fedclip"', 'method = "linear"'))
    else:
        other = other_bundle(site, wrong)
        fleet.write_text(right.replace(str(site.bundle.folder), str(other.folder)))
    agents = {
        name: site.start(
            "agent",
            site.write_agent(name, extra='methods = ["fedclip", "ridge"]'),
            "--json",
            log=name,
        )
        for name in ("north", "south-west")
    }
    serve = site.start("serve", "--once", fleet, "--json", log="wrong")
    reason, adds, lacks = WRONG[wrong]
    for name in agents:
        wait_until(lambda name=name: bool(events(site, name, "not_in_run")), f"{name} to wait")  # type: ignore[misc]
        (said,) = events(site, name, "not_in_run")
        assert reason in said["reason"]
        assert (said.get("run_adds"), said.get("run_lacks")) == (adds, lacks)
        assert "takes part once the coordinator's run fits it" in said["hint"]
    serve.send_signal(signal.SIGTERM)
    serve.wait(system.DEADLINE_S)
    fleet.write_text(right)
    serve = site.start("serve", "--once", fleet, "--json", log="right")
    assert serve.wait(system.DEADLINE_S) == 0, site.text("right")  # far less than five minutes
    closed = events(site, "right", "round_closed")
    assert [event["contributions"] for event in closed] == [2, 2]
    for name, process in agents.items():
        wait_until(lambda name=name: bool(events(site, name, "run_done")), f"{name} to end")  # type: ignore[misc]
        assert process.poll() is None
        assert len(events(site, name, "not_in_run")) == 1


def test_once_a_device_that_does_not_fit_ends(site: Site) -> None:
    site.start("serve", "--once", site.write_fleet(devices=1, rounds=1), "--json", log="serve")
    site.bundle = other_bundle(site, "classes")
    ended = system.run("agent", site.write_agent("north"), "--once")
    assert ended.returncode == RefusedError.exit_code
    assert "north cannot take part in the run: its bundle has other classes" in ended.stderr


def test_a_changed_plan_is_named_and_a_new_run_leaves_the_old_model(site: Site) -> None:
    fleet = site.write_fleet(devices=1, rounds=500)
    agent = site.start("agent", site.write_agent("north"), "--json", log="north")
    serve = site.start("serve", "--once", fleet, "--json", log="first")
    wait_until(lambda: len(events(site, "first", "round_closed")) > 2, "three closed rounds")
    serve.kill()
    serve.wait()
    (begun,) = events(site, "first", "serving")
    fleet.write_text(fleet.read_text().replace("rounds = 500", 'rounds = 3\ncodec_up = "fp16"'))
    refused = system.run("serve", fleet)
    assert refused.returncode == ConfigError.exit_code
    for words in (
        begun["run"],
        "plan.rounds: 500 in the journal, 3 in fleet.toml",
        'plan.codec_up: "int8" in the journal, "fp16" in fleet.toml',
        "--new-run",
    ):
        assert words in refused.stderr
    again = site.start("serve", "--once", fleet, "--new-run", "--json", log="second")
    assert again.wait(system.DEADLINE_S) == 0, site.text("second")
    (said,) = events(site, "second", "run_abandoned")
    assert (said["run"], said["reason"]) == (begun["run"], "asked for with --new-run")
    assert said["rounds_closed"] >= 3
    assert len(events(site, "second", "round_closed")) == 3
    wait_until(lambda: bool(events(site, "north", "run_done")), "the agent to end the new run")
    assert agent.poll() is None
    # The update to the abandoned run was neither offered nor refused in the new one.
    assert events(site, "north", "contribution_refused") == []
    used = system.run(
        *("predict", "--bundle", site.bundle.folder, "--model", begun["run"]),
        *("--journal", site.folder / "journal.sqlite", site.folder / "north" / "pictures"),
    )
    assert used.returncode == 0, used.stderr
    both = system.run("serve", fleet, "--new-run", "--from-round", "1")
    assert both.returncode == 2
    assert "--new-run and --from-round exclude each other" in both.stderr


def test_a_new_run_is_not_begun_beside_a_coordinator_that_is_online(site: Site) -> None:
    fleet = site.write_fleet(devices=1, rounds=1)
    serve = site.start("serve", "--once", fleet, "--json", log="serve")
    wait_until(lambda: bool(events(site, "serve", "serving")), "the coordinator to serve")
    refused = system.run("serve", fleet, "--new-run")
    assert refused.returncode == ConfigError.exit_code
    assert "another coordinator is online" in refused.stderr
    agent = site.start("agent", site.write_agent("north"), "--once", "--json", log="north")
    assert serve.wait(system.DEADLINE_S) == 0, site.text("serve")
    assert agent.wait(system.DEADLINE_S) == 0
    assert events(site, "serve", "run_abandoned") == []


def test_a_revoked_device_does_not_hold_up_the_first_round(
    tmp_path: Path, random_bundle: Bundle
) -> None:
    with (
        Secured(tmp_path) as secured,
        Site(tmp_path, random_bundle, secured.coordinator, "lab") as site,
    ):
        secured.start()
        agents = [write_enrolled(secured, random_bundle, name) for name in ("cam-1", "cam-2")]
        secured.box("cam-3")
        done = system.run("revoke", "cam-3", "--site", secured.site.path)
        assert done.returncode == 0, done.stderr
        serve = site.start(
            "serve", "--once", write_secured(secured, random_bundle), "--json", log="serve"
        )
        running = [
            site.start("agent", path, "--once", "--json", log=path.parent.name) for path in agents
        ]
        for process in (serve, *running):
            assert process.wait(system.DEADLINE_S) == 0, site.text("serve")
    (said,) = events(site, "serve", "too_few_enrolled")
    assert (said["devices"], said["enrolled"], said["waiting_for"]) == (3, 2, 2)
    assert "'devices' under [rules]" in said["hint"]


def write_secured(secured: Secured, bundle: Bundle) -> Path:
    here, path = secured.site.coordinator, secured.folder / "fleet.toml"
    path.write_text(
        f'fleet = "lab"\nbundle = "{bundle.folder}"\nregistry = "{secured.site.registry}"\n'
        f'[broker]\nport = {secured.port}\nca = "{here}/ca.crt"\n'
        f'certificate = "{here}/coordinator.crt"\nkey = "{here}/coordinator.key"\n'
        '[rules]\ndevices = 3\n[plan]\nmethod = "fedclip"\nrounds = 1\nvote = "off"\n'
    )
    return path


def write_enrolled(secured: Secured, bundle: Bundle, name: str) -> Path:
    secured.box(name)
    folder = secured.folder / name
    system.write_pictures(folder / "pictures", bundle.classes.names, 12, len(name))
    path = folder / "agent.toml"
    text = path.read_text().replace('# bundle = "bundle"', f'bundle = "{bundle.folder}"')
    text = text.replace('"/var/lib/fedclip-edge"', '"state"').replace(
        '"/srv/pictures"', '"pictures"'
    )
    path.write_text(text)
    return path


def start_slow_agent(site: Site, config: Path, go: Path) -> subprocess.Popen[bytes]:
    """An agent that decodes one batch, and the next one when the file `go` exists."""
    words = [sys.executable, slow_agent.__file__, "0", str(go), str(config)]
    return site.start_program(words, "north")


@pytest.mark.parametrize("first", ["agent", "serve"])
def test_the_coordinator_names_a_device_that_encodes(site: Site, first: str) -> None:
    fleet, go = site.write_fleet(devices=1, rounds=1), site.folder / "go"
    config = site.write_agent("north")

    def serve() -> None:
        site.start("serve", "--once", fleet, "--json", log="serve")
        wait_until(lambda: bool(events(site, "serve", "serving")), "the coordinator to serve")

    if first == "serve":
        serve()
    start_slow_agent(site, config, go)
    if first == "agent":
        serve()
    wait_until(lambda: bool(events(site, "serve", "device_encodes")), "the coordinator to know it")
    (said,) = events(site, "serve", "device_encodes")
    assert (said["device"], said["done"], said["total"]) == ("north", 8, 36)
    if first == "agent":
        words = "north (encoding: 8 of 36 pictures)"
        wait_until(lambda: words in site.text("serve"), "the coordinator to say so again")
    go.touch()
    assert site.processes[0 if first == "serve" else 1].wait(system.DEADLINE_S) == 0
    assert [e["device"] for e in events(site, "serve", "joined")] == ["north"]
    assert events(site, "serve", "message_refused") == []


def test_a_device_encodes_without_a_broker_and_then_says_what_is_wrong(
    site: Site, tmp_path: Path
) -> None:
    config, go = site.write_agent("north"), site.folder / "go"
    config.write_text(re.sub(r"port = \d+", "port = 9", config.read_text()))
    agent = start_slow_agent(site, config, go)
    wait_until(lambda: bool(events(site, "north", "encoding_offline")), "the agent to say so")
    go.touch()
    assert agent.wait(system.DEADLINE_S) == 20
    assert events(site, "north", "features_ready")[0]["encoded"] == 36
    assert "no MQTT broker answers at 127.0.0.1:9" in site.text("north")
