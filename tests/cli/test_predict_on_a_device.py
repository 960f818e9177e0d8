"""`fedclip-edge predict PICTURE` on a device: its bundle and the model that it uses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import system
from click.testing import CliRunner, Result

from fedclip_edge import model_file
from fedclip_edge.agent.bundle_store import fetched_folder
from fedclip_edge.agent.model_in_use import FLEET, OWN, ModelChoice
from fedclip_edge.cli import predict_source
from fedclip_edge.cli.predict import predict
from fedclip_edge.errors import ConfigError
from fedclip_edge.model_file import TrainedModel
from fedclip_edge.vision.bundle import Bundle


@pytest.fixture
def device(tmp_path: Path, random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The agent.toml of a device in the working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "agent.toml"
    path.write_text(
        f'id = "cam-07"\nfleet = "lab"\nbundle = "{random_bundle.folder}"\nstate_dir = "state"\n'
        '[data]\nfolder = "pictures"\n'
    )
    (tmp_path / "state").mkdir()
    return path


def adopt(bundle: Bundle, device: Path, trained: TrainedModel) -> None:
    manifest = bundle.manifest
    folder = device.parent / "state"
    ModelChoice(folder, manifest.encoder_id, manifest.dim, bundle.classes, wants_own=True).adopt(
        replace(trained, version="a" * 64)
    )


def typed(*words: str | Path) -> Result:
    return CliRunner().invoke(predict, ["--json", *map(str, words)])


def labels(done: Result) -> list[tuple[str, float]]:
    assert done.exit_code == 0, done.output
    return [(one["label"], one["probability"]) for one in map(json.loads, done.stdout.splitlines())]


def test_it_uses_the_devices_bundle_and_model(
    random_bundle: Bundle, device: Path, pictures: Path, trained: TrainedModel, tmp_path: Path
) -> None:
    before = typed(pictures)
    assert "zero-shot (the device has no model yet)" in before.stderr
    assert labels(before) == labels(typed(pictures, "--bundle", random_bundle.folder))
    adopt(random_bundle, device, trained)
    after = typed(pictures)
    assert "run-1234abcd, round 1 of 1 (fedclip)" in after.stderr
    model_file.write(tmp_path / "model.safetensors", trained)
    by_path = typed(
        pictures, "--bundle", random_bundle.folder, "--model", tmp_path / "model.safetensors"
    )
    assert labels(after) == labels(by_path)
    assert labels(after) != labels(before)


def test_another_folder_and_the_installed_file(
    random_bundle: Bundle,
    device: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    refused = typed(pictures)
    assert isinstance(refused.exception, ConfigError)
    assert "--bundle" in str(refused.exception)
    assert "--config" in str(refused.exception)
    assert labels(typed(pictures, "--config", device))
    monkeypatch.setattr(predict_source, "_INSTALLED", device)
    assert labels(typed(pictures))


def test_the_own_model_or_the_fleets_as_agent_toml_says(
    random_bundle: Bundle, device: Path, pictures: Path, trained: TrainedModel, tmp_path: Path
) -> None:
    adopt(random_bundle, device, trained)
    # A device's own model can be the fleet's, if nothing was better.
    model_file.write(tmp_path / "state" / OWN, replace(trained, run="own-cam-07"))
    assert "own-cam-07, round 1" in typed(pictures).stderr
    device.write_text(device.read_text() + '[answers]\nmodel = "fleet"\n')
    assert "run-1234abcd, round 1" in typed(pictures).stderr


def test_what_cannot_be_used_is_an_error_with_the_next_step(
    random_bundle: Bundle, device: Path, pictures: Path, trained: TrainedModel, tmp_path: Path
) -> None:
    adopt(random_bundle, device, trained)
    (tmp_path / "state" / FLEET).write_bytes(b"damaged")
    damaged = typed(pictures)
    assert isinstance(damaged.exception, ConfigError)
    assert str(tmp_path / "state" / FLEET) in str(damaged.exception)
    lines = [line for line in device.read_text().splitlines() if not line.startswith("bundle")]
    device.write_text("\n".join([f'export_key = "{"0" * 64}"', *lines]))
    without = typed(pictures)
    assert isinstance(without.exception, ConfigError)
    assert "has no bundle yet" in str(without.exception)
    both = typed(pictures, "--config", device, "--bundle", random_bundle.folder)
    assert both.exit_code == 2
    assert not fetched_folder(tmp_path / "state").exists(), "predict changed the device's state"


def test_the_agent_prints_the_access_list_of_its_answers(device: Path) -> None:
    refused = system.run("agent", device, "--access-list")
    assert refused.returncode == 10
    assert "[answers.broker]" in refused.stderr
    device.write_text(
        device.read_text() + '[answers.broker]\nusername = "box"\nhome_assistant = true\n'
    )
    done = system.run("agent", device, "--access-list")
    assert done.stdout.splitlines() == [
        "user box",
        "topic write fedclip-edge/cam-07/#",
        "topic write homeassistant/device/fedclip-edge-cam-07/config",
    ]
