"""Figures for other programs, without a journal; test_run_export.py has those of real runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fedclip_edge.reporting.tracking import Figure, Tracked, write_csv, write_mlflow


def tracked(*figures: Figure) -> Tracked:
    return Tracked("lab", "run-1", 1000.0, {"method": "auto"}, figures)


@pytest.mark.parametrize("asked", [None, "false"])
def test_mlflow_is_loaded_without_its_telemetry_unless_the_user_asks_for_it(
    asked: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "2")  # so that they are as before after the test
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", asked or "")
    if asked is None:
        monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ModuleNotFoundError):
        write_mlflow(tracked(), str(tmp_path))
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == (asked or "true")


def test_the_csv_file_keeps_every_digit_and_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.csv"
    write_csv(tracked(), path)
    write_csv(tracked(Figure(1, None, "a", 1 / 3), Figure(1, "cam-1", "a/b", 2)), path)
    assert path.read_text() == (
        f"run,round,device,figure,value\nrun-1,1,,a,{1 / 3!r}\nrun-1,1,cam-1,a/b,2\n"
    )


def test_the_fleet_comes_first_also_without_a_figure() -> None:
    found = tracked(Figure(1, "cam-1", "a", 2.0)).by_device()
    assert list(found) == [None, "cam-1"]
