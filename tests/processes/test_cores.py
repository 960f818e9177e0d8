"""Cores that this process may use: affinity, and quotas of control groups of both versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedclip_edge.processes.cores import usable_cores

if not hasattr(os, "sched_setaffinity"):
    pytest.skip("affinity and control groups exist only on Linux", allow_module_level=True)


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content + "\n")


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 16),
        ("200000 100000", 2),
        ("350000 100000", 3),
        ("50000 100000", 1),
        ("9900000 100000", 16),
        ("damaged", 16),
        ("", 16),
    ],
)
def test_a_quota_counts_in_whole_cores(tmp_path: Path, quota: str, cores: int) -> None:
    write(tmp_path / "fs" / "box", cpu__max=quota)
    (tmp_path / "own").write_text("0::/box\n")
    assert usable_cores(tmp_path / "fs", tmp_path / "own") == cores


@pytest.mark.usefixtures("many_cores")
def test_the_smallest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    write(tmp_path / "fs" / "a" / "b", cpu__max="500000 100000")
    write(tmp_path / "fs" / "a", cpu__max="300000 100000")
    write(tmp_path / "fs" / "other", cpu__max="100000 100000")
    (tmp_path / "own").write_text("0::/a/b\n")
    assert usable_cores(tmp_path / "fs", tmp_path / "own") == 3
    write(tmp_path / "fs", cpu__max="200000 100000")
    assert usable_cores(tmp_path / "fs", tmp_path / "own") == 2


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize("path", ["/", "/../../box", "/docker/0123"])
def test_a_container_that_does_not_see_its_own_group(tmp_path: Path, path: str) -> None:
    write(tmp_path / "fs", cpu__max="400000 100000")
    (tmp_path / "own").write_text(f"0::{path}\n")
    assert usable_cores(tmp_path / "fs", tmp_path / "own") == 4


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(("quota", "cores"), [("250000", 2), ("-1", 16)])
def test_groups_of_version_one(tmp_path: Path, quota: str, cores: int) -> None:
    write(tmp_path / "fs" / "cpu" / "box", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    (tmp_path / "own").write_text("4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n")
    assert usable_cores(tmp_path / "fs", tmp_path / "own") == cores


@pytest.mark.usefixtures("many_cores")
def test_without_control_groups_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path / "none") == 16


def test_the_affinity_of_a_real_process() -> None:
    code = (
        "import os; from fedclip_edge.processes.cores import usable_cores; "
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(usable_cores())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1\n"
