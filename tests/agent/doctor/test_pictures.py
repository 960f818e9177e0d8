"""The check of the features: each fault of the cache has its own step."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedclip_edge.agent.doctor import pictures
from fedclip_edge.agent.doctor.pictures import Pictures
from fedclip_edge.agent.features import CACHE
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.errors import DataError, DiskError, FedclipError
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
