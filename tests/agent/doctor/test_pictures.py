"""Checks of a box's bundle, without a change of the device's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedclip_edge.agent.doctor.pictures import Pictures
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.errors import BundleError


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
