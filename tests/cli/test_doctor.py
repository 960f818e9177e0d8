"""`fedclip-edge doctor`, as a person runs it: with an agent beside it, and without."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import system
from system import Site, wait_until

from fedclip_edge.agent.features import CACHE
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.vision.bundle import Bundle


@pytest.fixture
def site(tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress) -> Iterator[Site]:
    with Site(tmp_path, random_bundle, mosquitto, f"lab-{secrets.token_hex(4)}") as made:
        yield made


def checks(config: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    done = system.run("doctor", config, "--json")
    found = json.loads(done.stdout)
    assert found["passes"] == (done.returncode == 0)
    return done.returncode, {one["name"]: one for one in found["checks"]}


def test_a_device_is_checked_before_its_agent_runs_and_while_it_does(site: Site) -> None:
    config = site.write_agent("north")
    code, found = checks(config)
    assert code == 19, "no coordinator is there"
    assert {name for name, one in found.items() if one["state"] == "todo"} <= {"fleet", "disk"}
    assert found["agent"]["said"].endswith("it does not run")
    assert "the golden features agree" in found["encoder"]["said"]
    assert "circle 12, square 12, triangle 12" in found["pictures"]["said"]
    assert found["cache"]["state"] == "skipped"
    assert not (config.parent / "state").exists(), "doctor makes nothing"

    site.start("agent", config, "--json", log="north")
    fleet = site.write_fleet(devices=2, rounds=1)
    site.start("serve", fleet, "--json", log="serve")
    wait_until(
        lambda: any(event["event"] == "joined" for event in site.events("serve")), "the device"
    )
    # The agent itself writes position.json, at any time.
    files = sorted(
        {*(config.parent / "state").glob("*.json*")} - {config.parent / "state/position.json"}
    )
    before = [file.read_bytes() for file in files]
    code, found = checks(config)
    assert found["agent"]["said"].endswith("it runs")
    assert found["cache"]["said"].startswith("36 features of this encoder")
    assert found["cache"]["said"].endswith("0 of 36 labelled pictures are not encoded yet")
    assert found["rights"]["state"] == "ok"
    assert "waits for devices before round 1" in found["fleet"]["said"]
    assert before == [file.read_bytes() for file in files]
    assert not any(event["event"] in ("link_lost", "left") for event in site.events("north"))
    assert not any(
        event["event"] in ("left", "message_refused") for event in site.events("serve")
    ), "a run is not disturbed"


def test_what_is_wrong_with_the_pictures_is_named_with_the_nearest_class(site: Site) -> None:
    config = site.write_agent("north")
    pictures = config.parent / "pictures"
    (pictures / "circle").rename(pictures / "circel")
    (pictures / "square" / "bad.png").write_text("no picture")
    (pictures / "000.png").write_bytes((pictures / "square" / "000.png").read_bytes() + b"\n")
    _, found = checks(config)
    assert found["labels"]["state"] == "todo"
    assert (
        "circel: it is not named after a class of the bundle; did you mean 'circle'?"
        in (found["labels"]["said"])
    )
    assert "bad.png" in found["labels"]["said"]
    assert "1 without a label" in found["pictures"]["said"]


def test_a_damaged_cache_and_a_damaged_bundle_are_named(site: Site) -> None:
    config = site.write_agent("north")
    (config.parent / "state").mkdir()
    (config.parent / "state" / CACHE).write_bytes(b"no database" * 1000)
    text = config.read_text()
    _, found = checks(config)
    assert found["cache"]["state"] == "todo"
    assert "features.sqlite" in found["cache"]["todo"]
    config.write_text(text.replace(str(site.bundle.folder), str(site.folder / "missing")))
    _, found = checks(config)
    assert found["bundle"]["state"] == "todo"
    skipped = {name: found[name]["state"] for name in ("encoder", "pictures", "cache")}
    assert set(skipped.values()) == {"skipped"}, "one finding for one fault"
    assert found["disk"]["said"], "the other checks go on"
    assert found["broker"]["state"] == "ok"


def test_a_person_reads_one_line_for_each_check_and_what_to_do(site: Site) -> None:
    config = site.write_agent("north")
    done = system.run("doctor", config)
    assert done.returncode == 19
    assert "ok     bundle" in done.stdout
    assert "TO DO  fleet" in done.stdout
    assert "-> start `fedclip-edge serve` with this broker" in done.stdout
    assert "checks ask for a step" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_broken_configuration_is_the_only_finding(tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text('id = "cam-01"\nfleets = "lab"\n')
    code, found = checks(config)
    assert code == 19
    assert list(found) == ["settings"]
    assert "agent.toml" in found["settings"]["said"]
