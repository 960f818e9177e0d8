"""The quota of the feature cache: what is unused goes, what is needed stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedclip_edge.agent.cache_quota import LOOK_S, CacheQuota
from fedclip_edge.config.limits import Limits
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.cache_state import examine

DIM = 1000  # a feature takes 4 kB


def fill(path: Path, names: list[str], key: str) -> None:
    with FeatureCache(path) as cache:
        cache.put({name: np.ones(DIM, np.float32) for name in names}, key)


def quota(path: Path, limit_mb: int, needed: list[str]) -> CacheQuota:
    return CacheQuota(path, "now", lambda: Limits(max_cache_mb=limit_mb), lambda: needed)


def test_features_that_are_not_needed_go_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, needed = tmp_path / "features.sqlite", [f"n{i}" for i in range(100)]
    fill(path, needed, "now")
    fill(path, [f"o{i}" for i in range(300)], "of an earlier encoder")
    fill(path, [f"a{i}" for i in range(100)], "now")
    made = quota(path, 1, needed)
    made.look(0.0)
    with FeatureCache(path) as cache:
        assert cache.held_bytes() <= 1_000_000
    assert set(needed) <= examine(path, "now").pictures
    assert "cache_trimmed" in capsys.readouterr().out
    fill(path, [f"b{i}" for i in range(200)], "now")
    made.look(LOOK_S / 2)
    assert len(examine(path, "now").pictures) >= 300, "it looks only now and then"
    made.look(LOOK_S + 1)
    assert set(needed) <= examine(path, "now").pictures
    assert len(examine(path, "now").pictures) < 300


def test_features_that_are_needed_stay_and_the_log_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, needed = tmp_path / "features.sqlite", [f"n{i}" for i in range(500)]
    fill(path, needed, "now")
    made = quota(path, 1, needed)
    for turn in range(3):
        made.look(turn * (LOOK_S + 1))
    assert examine(path, "now").pictures == frozenset(needed)
    said = capsys.readouterr().out
    assert said.count("cache_above_limit") == 1
    assert "cache_trimmed" not in said


def test_without_a_limit_or_below_it_nothing_happens(tmp_path: Path) -> None:
    path = tmp_path / "features.sqlite"
    fill(path, ["a"], "now")
    CacheQuota(path, "now", Limits, list).look(0.0)
    quota(path, 100, []).look(0.0)
    assert examine(path, "now").pictures == {"a"}


def test_a_damaged_cache_is_reported_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "features.sqlite"
    path.write_bytes(b"no database" * 200_000)
    quota(path, 1, []).look(0.0)
    assert "cache_not_trimmed" in capsys.readouterr().out
