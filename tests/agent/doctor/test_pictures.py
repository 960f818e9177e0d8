"""Checks of a box's bundle and of its features, without a change of the device's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedclip_edge.agent.doctor import pictures
from fedclip_edge.agent.doctor.pictures import Pictures
from fedclip_edge.agent.features import CACHE
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.errors import BundleError, DataError, DiskError, FedclipError
from fedclip_edge.vision.bundle import Bundle


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (DiskError("the cache cannot be used: disk I/O error; free space"), "free space"),
        (DataError("the cache is damaged; make it anew"), "stop the agent, delete "),
    ],
)
def test_only_a_damaged_cache_is_to_be_deleted(
    tmp_path: Path,
    random_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    error: FedclipError,
    step: str,
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(pictures, "examine", fails)
    (tmp_path / CACHE).touch()
    data = DataConfig(tmp_path)
    config = AgentConfig("cam-07", "lab", data, tmp_path, bundle=random_bundle.folder)
    (found,) = Pictures(config).check_cache()
    assert (found.name, found.state) == ("cache", "todo")
    assert found.todo.startswith(step)


def test_a_damaged_bundle_stays_for_the_agent_to_give_up(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    (bundles / "1-abc").mkdir(parents=True)
    (bundles / "1-abc" / "manifest.json").write_text("{}")
    chosen = json.dumps({"current": "1-abc", "previous": None, "newest": 1})
    (bundles / "chosen.json").write_text(chosen)
    config = AgentConfig("cam-01", "lab", DataConfig(tmp_path), tmp_path, export_key="0" * 64)
    with pytest.raises(BundleError):
        list(Pictures(config).check_bundle())
    assert (bundles / "chosen.json").read_text() == chosen
    assert (bundles / "1-abc").is_dir()
