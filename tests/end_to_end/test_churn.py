"""The benchmark of devices that come and go: its cases, for a short time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from checkout import ROOT

from fedclip_edge.coordinator import attendance

sys.path.insert(0, str(ROOT / "benchmarks"))

import churn

pytestmark = pytest.mark.one_python  # the result does not depend on the Python version


def test_the_benchmark_ends_with_0_and_its_figures() -> None:
    program = ROOT / "benchmarks" / "churn.py"
    command = [
        sys.executable,
        str(program),
        "--json",
        "--share",
        "0.02",
        "--case",
        "three is refused",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    figures = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [one["name"] for one in figures] == ["undisturbed", "one of three is refused"]
    assert [one["missed"] for one in figures] == ["", ""]


def test_a_fleet_that_waits_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the memory of departures, a device that comes and goes costs too many rounds."""
    monkeypatch.setattr(attendance, "STEADY_DEADLINES", 0)
    (case,) = (case for case in churn.CASES if case.name == "two trainers take turns")
    undisturbed = churn.Result("undisturbed", 300, 300.0, 0.3, 600.0, (), 0.0)
    assert "fewer than 80%" in churn.measure(case, 0.2).missed(undisturbed)
