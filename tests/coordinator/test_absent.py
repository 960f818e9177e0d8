"""Devices that are away from a run, and count with their last contribution."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from coordinated_fleet import device
from in_memory import Fleet
from opened import opened

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.coordinator import process
from fedclip_edge.errors import ConfigError
from fedclip_edge.pki.registry import Device, Registry
from fedclip_edge.protocol import signing
from fedclip_edge.records import Plan

PLAN = Plan("gda", vote="off")
RULES = RunRules(devices=3, quorum=1.0, deadline_s=30.0, grace_s=1.0)
NAMES = ("cam-0", "cam-1", "cam-2")


def enrolled(folder: Path) -> Registry:
    """A registry of three devices, whose keys are in their folders."""
    keys = {}
    for name in NAMES:
        (folder / name).mkdir(exist_ok=True)
        keys[name] = signing.load_or_create(folder / name / "device.key").key
    ours = signing.load_or_create(folder / "coordinator.key").key
    devices = {name: Device(key, (), "2030-01-01") for name, key in keys.items()}
    return Registry("lab", "edge", 8883, ours, devices=devices)


def a_run(folder: Path, registry: Registry, rules: RunRules, *numbers: int) -> Fleet:
    """Serve one run with these devices online."""
    fleet = opened(Fleet(folder, PLAN, rules, registry=registry, once=True))
    for number in numbers:
        device(fleet, number)
    fleet.run()
    return fleet


def counted_last(fleet: Fleet) -> list[str]:
    run = fleet.coordinator.run_state.run.id
    return [last.device for last in fleet.journal.contributions.counted_last(run, 1)]


def test_a_device_that_is_away_counts_unless_it_was_revoked(tmp_path: Path) -> None:
    registry = enrolled(tmp_path)
    a_run(tmp_path, registry, RULES, 0, 1, 2)
    alone = replace(RULES, devices=1, absent="last")
    assert counted_last(a_run(tmp_path, registry, alone, 0)) == ["cam-1", "cam-2"]
    revoked = registry.with_device("cam-1", replace(registry.devices["cam-1"], revoked=True))
    assert counted_last(a_run(tmp_path, revoked, alone, 0)) == ["cam-2"]
    assert counted_last(a_run(tmp_path, registry, replace(alone, absent="skip"), 0)) == []


def test_a_device_that_is_online_and_only_evaluates_does_not_count(tmp_path: Path) -> None:
    registry = enrolled(tmp_path)
    a_run(tmp_path, registry, RULES, 0, 1, 2)
    alone = replace(RULES, devices=1, absent="last")
    fleet = opened(Fleet(tmp_path, PLAN, alone, registry=registry, once=True))
    device(fleet, 1, ("evaluate",))
    fleet.step()
    fleet.step()
    device(fleet, 0)
    fleet.run()
    assert counted_last(fleet) == ["cam-2"]


def test_a_forgotten_device_is_not_admitted_to_its_run_again(tmp_path: Path) -> None:
    registry = enrolled(tmp_path)
    fleet = a_run(tmp_path, registry, RULES, 0, 1, 2)
    run = fleet.coordinator.run_state.run.id
    with fleet.journal.transaction() as database:
        database.execute("INSERT INTO forgotten VALUES (?, 'cam-1', 0)", (run,))
    again = opened(Fleet(tmp_path, PLAN, RULES, registry=registry))
    for number in range(3):
        device(again, number)
    for _ in range(8):
        again.step()
    assert again.coordinator.run_state.run.id == run
    assert not again.coordinator.devices.is_online("cam-1")
    assert again.coordinator.devices.is_online("cam-2")


def test_a_method_without_exact_sums_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    text = 'fleet = "lab"\nbundle = "bundle"\n[rules]\nabsent = "last"\n[plan]\nmethod = "{}"\n'
    path.write_text(text.format("fedclip"))
    with pytest.raises(
        ConfigError, match=r'\[rules\]: absent = "last" needs a method with a round'
    ):
        process.load(path)
    for method in ("auto", "gda", "ridge", "tofa"):
        path.write_text(text.format(method))
        assert process.load(path).rules.absent == "last"
    path.write_text("keep_sums_mb = 0\n" + text.format("gda"))
    with pytest.raises(ConfigError, match="keep_sums_mb: 0 keeps no contribution"):
        process.load(path)
