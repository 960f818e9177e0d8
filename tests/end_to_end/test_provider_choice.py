"""An agent chooses the provider of its encoder at its first start, and stays with it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import system
from checkout import ROOT
from fake_openvino import FakeOpenvino
from system import Site

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import ConfigError
from fedclip_edge.vision.bundle import Bundle


@pytest.fixture
def site(tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress) -> Iterator[Site]:
    with Site(tmp_path, random_bundle, mosquitto, f"lab-{secrets.token_hex(4)}") as made:
        yield made


@pytest.fixture
def openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeOpenvino:
    return FakeOpenvino(tmp_path / "packages", monkeypatch)


def run_once(site: Site, agent: Path, log: str) -> dict[str, dict[str, Any]]:
    """Run one run of one device; its events by name."""
    fleet = site.write_fleet(1, 1, method="ridge")
    (site.folder / "journal.sqlite").unlink(missing_ok=True)
    started = [
        site.start("serve", "--once", fleet, "--json", log=f"serve-{log}"),
        site.start("agent", agent, "--once", "--json", log=log),
    ]
    for name, process in zip((f"serve-{log}", log), started, strict=True):
        assert process.wait(system.DEADLINE_S) == 0, site.text(name)
    return {event["event"]: event for event in site.events(log)}


def test_the_choice_is_logged_kept_and_used(site: Site, openvino: FakeOpenvino) -> None:
    openvino.act(f32="slow", bf16="crash")
    agent = site.write_agent("north", extra='methods = ["ridge"]')
    first = run_once(site, agent, "first")
    assert first["encoder_providers_tried"]["providers"] == "cpu, openvino, openvino-bf16"
    chosen = first["encoder_provider_chosen"]
    assert chosen["provider"] == first["features_ready"]["provider"] == "cpu"
    assert "; openvino-bf16 refused: " in chosen["tried"]
    assert "was killed by SIGSEGV" in chosen["tried"]
    file = site.folder / "north" / "state" / "encoder.json"
    ((_, kept),) = json.loads(file.read_text()).items()
    assert kept["provider"] == "cpu"
    openvino.act()
    second = run_once(site, agent, "second")
    assert "encoder_providers_tried" not in second
    assert second["features_ready"]["encoded"] == 0


def test_a_named_provider_is_used_and_its_features_are_its_own(
    site: Site, openvino: FakeOpenvino
) -> None:
    extra = 'methods = ["ridge"]\n[encoder]\nprovider = "openvino"\nprecision = "bf16"'
    agent = site.write_agent("north", extra=extra)
    first = run_once(site, agent, "first")
    assert first["features_ready"]["provider"] == "openvino-bf16"
    assert first["features_ready"]["encoded"] > 0
    text = agent.read_text()
    agent.write_text(text.replace('"openvino"', '"cpu"').replace('"bf16"', '"fp32"'))
    second = run_once(site, agent, "second")
    assert second["encoder_provider_changed"]["before"] == "openvino-bf16"
    assert second["features_ready"]["encoded"] == first["features_ready"]["encoded"]


def test_an_agent_can_be_stopped_while_it_tries(site: Site, openvino: FakeOpenvino) -> None:
    openvino.act(f32="hang")
    agent = site.write_agent("north", extra='methods = ["ridge"]')
    process = site.start("agent", agent, "--json", log="north")
    system.wait_until(
        lambda: any("openvino" in system.of_process(pid, "cmdline") for pid in tries(process.pid)),
        "the trial that hangs",
    )
    trials = tries(process.pid)
    process.terminate()
    assert process.wait(system.DEADLINE_S) == 0, site.text("north")
    assert not trials & set(system.commands())


def tries(pid: int) -> set[int]:
    """The child processes that try a provider."""
    return {
        child
        for child in system.descendants(pid)
        if "provider_trial" in system.of_process(child, "cmdline")
    }


@pytest.mark.parametrize(
    ("act", "said"),
    [("crash", "'openvino' was killed by SIGSEGV while it checked"), ("", "is not installed")],
)
def test_a_named_provider_that_cannot_be_used_stops_the_agent(
    site: Site, openvino: FakeOpenvino, monkeypatch: pytest.MonkeyPatch, act: str, said: str
) -> None:
    if act:
        openvino.act(f32=act)
    else:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
    extra = 'methods = ["ridge"]\n[encoder]\nprovider = "openvino"\nprecision = "fp32"'
    done = system.run("agent", site.write_agent("north", extra=extra), "--once")
    assert done.returncode == ConfigError.exit_code, done.stderr
    assert said in done.stderr
    assert not (site.folder / "north" / "state" / "features.sqlite").exists()
