"""Checks of a box: disk, memory, clock, temperature, packages and certificate."""

from __future__ import annotations

import dataclasses
import datetime as dt
import errno
import importlib.metadata
import os
import tempfile
from pathlib import Path

import pytest

from fedclip_edge.agent.doctor import box
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.config.limits import Limits
from fedclip_edge.errors import ConfigError
from fedclip_edge.pki import authority

UTC = dt.timezone.utc


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    return AgentConfig(
        "cam-01", "lab", DataConfig(tmp_path), tmp_path / "state", bundle=tmp_path / "bundle"
    )


def test_a_clock_in_1970_is_named(config: AgentConfig) -> None:
    (found,) = box.clock(config, dt.datetime(1970, 1, 1, 0, 3, tzinfo=UTC))
    assert found.state == "todo"
    assert found.said == "1970-01-01 00:03:00 UTC, long ago: this box lost its time"
    assert "timedatectl" in found.todo
    (found,) = box.clock(config)
    assert found.state == "ok"


def test_a_disk_that_cannot_be_written_to_is_named(config: AgentConfig, tmp_path: Path) -> None:
    (found,) = box.disk(config)
    assert found.state in ("ok", "todo")  # the machine's disk may be full
    assert "which the agent will create" in found.said or found.state == "todo"
    assert not config.state_dir.exists(), "doctor makes nothing"
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("nothing is denied to this user")
    (found,) = box.disk(dataclasses.replace(config, state_dir=tmp_path / "closed"))
    assert found.state == "todo"
    assert "cannot be written to" in found.said


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EROFS, "repair or replace the disk"),
        (errno.EACCES, "run doctor as the agent's user"),
    ],
)
def test_each_fault_of_a_disk_has_its_own_step(
    config: AgentConfig, monkeypatch: pytest.MonkeyPatch, number: int, step: str
) -> None:
    def fails(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", fails)
    (found,) = box.disk(config)
    assert found.state == "todo"
    assert step in found.todo
    assert os.strerror(number) in found.said


@pytest.mark.parametrize(("free", "state"), [(300_000, "todo"), (900_000, "ok")])
def test_little_memory_is_named(tmp_path: Path, free: int, state: str) -> None:
    file = tmp_path / "meminfo"
    file.write_text(f"MemTotal: 1000000 kB\nMemAvailable: {free} kB\n")
    (found,) = box.memory(file)
    assert found.state == state
    assert found.said == f"{free // 1000} MB of 1,000 MB free"
    (found,) = box.memory(tmp_path / "missing")
    assert found.state == "skipped"


def test_a_hot_box_and_an_empty_socket_are_named(config: AgentConfig, tmp_path: Path) -> None:
    (found,) = box.conditions(config, tmp_path)
    assert found.state == "skipped"
    zone = tmp_path / "thermal" / "thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text("91000\n")
    (found,) = box.conditions(config, tmp_path)
    assert (found.state, found.said) == ("ok", "91 degrees")
    limited = dataclasses.replace(config, limits=Limits(max_temperature_c=85))
    (found,) = box.conditions(limited, tmp_path)
    assert found.said == "91 degrees; max_temperature_c is 85, so the agent pauses"
    assert found.state == "todo"


def test_missing_packages_are_named_and_torch_only_if_it_is_needed(
    config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    (found,) = box.packages(config)
    assert found.state == "todo"
    assert found.said.endswith("missing: torch")
    assert "pip install 'fedclip-edge[agent]'" in found.todo
    (found,) = box.packages(dataclasses.replace(config, methods=("ridge",)))
    assert found.state == "ok"
    assert found.said.endswith("torch is not needed")


def with_certificate(config: AgentConfig, folder: Path, days: int) -> AgentConfig:
    ca, key, file = authority.create_authority("lab"), authority.new_key(), folder / "device.crt"
    file.write_bytes(authority.certify_device(ca, key.public_key(), "cam-01", days).pem)
    (folder / "device.key").write_bytes(authority.private_pem(key))
    (folder / "ca.crt").write_bytes(file.read_bytes())
    broker = BrokerAddress(ca=folder / "ca.crt", certificate=file, key=folder / "device.key")
    return dataclasses.replace(config, broker=broker)


def test_a_certificate_that_ends_soon_or_is_of_another_device_is_named(
    config: AgentConfig, tmp_path: Path
) -> None:
    (found,) = box.certificate(config)
    assert found.state == "skipped"
    made = with_certificate(config, tmp_path, 400)
    (found,) = box.certificate(made)
    assert (found.state, found.said[:17]) == ("ok", "of cam-01, until ")
    now = dt.datetime.now(UTC)
    (found,) = box.certificate(made, now + dt.timedelta(days=385))
    assert found.state == "todo"
    assert "days" in found.said
    assert "fedclip-edge renew cam-01" in found.todo
    (found,) = box.certificate(made, now + dt.timedelta(days=500))
    assert found.said.startswith("it expired on ")
    with pytest.raises(ConfigError, match="was issued to 'cam-01', not to 'cam-02'"):
        list(box.certificate(dataclasses.replace(made, id="cam-02")))
    (tmp_path / "device.crt").write_text("nothing")
    (found,) = box.certificate(made)
    assert found.said.endswith("cannot be read: it is no certificate in PEM")


def test_a_clock_before_the_certificate_is_named(config: AgentConfig, tmp_path: Path) -> None:
    made = with_certificate(config, tmp_path, 400)
    early = max(dt.datetime.now(UTC) - dt.timedelta(days=30), dt.datetime(2026, 1, 2, tzinfo=UTC))
    (found,) = box.clock(made, early)
    assert found.state == "todo"
    assert "device.crt was issued" in found.said
