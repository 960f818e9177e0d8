"""Predicting, evaluating and closed-form training in interpreters that have no torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import system
from checkout import ROOT
from system import Site

from fedclip_edge import model_file
from fedclip_edge.errors import ConfigError
from fedclip_edge.model_file import TrainedModel
from fedclip_edge.vision.bundle import Bundle

# Python runs a sitecustomize module at its start.
BLOCKER = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
"""


@pytest.fixture
def without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `import torch` fail in every process that the test starts."""
    folder = tmp_path / "blocker"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCKER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize("has_model", [True, False])
def test_predict(
    random_bundle: Bundle, pictures: Path, trained: TrainedModel, tmp_path: Path, has_model: bool
) -> None:
    model_file.write(tmp_path / "run.safetensors", trained)
    chosen: list[str | Path] = ["--model", tmp_path / "run.safetensors"] if has_model else []
    done = system.run("predict", pictures, "--bundle", random_bundle.folder, *chosen)
    assert done.returncode == 0, done.stderr
    assert "15 pictures" in done.stdout


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize("method", ["fedclip", "ridge"])
def test_a_run(site: Site, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with torch trains, or none is needed; the other one evaluates the last model."""
    fleet = site.write_fleet(1, 1, method=method)
    evaluates = site.write_agent("north", extra='roles = ["evaluate"]')
    trains = site.write_agent("south", extra='methods = ["ridge"]' if method == "ridge" else "")
    processes = [
        site.start("serve", "--once", fleet, "--json", log="serve"),
        site.start("agent", evaluates, "--once", "--json", log="north"),
    ]
    if method == "fedclip":
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
    processes.append(site.start("agent", trains, "--once", "--json", log="south"))
    for name, process in zip(("serve", "north", "south"), processes, strict=True):
        if name != "serve":
            assert process.wait(system.DEADLINE_S) == 0, site.text(name)
    for name in ("north", "south"):
        said = site.events(name)
        assert [e["round"] for e in said if e["event"] == "evaluated"][-1] == 1
        loads = name == "south" and method == "fedclip"
        assert any(e["event"] == "torch_loaded" for e in said) == loads


@pytest.mark.usefixtures("without_torch")
def test_a_device_that_may_have_to_train_by_gradients_says_that_torch_is_missing(
    site: Site,
) -> None:
    agent = site.write_agent("north")
    done = system.run("agent", agent)
    assert done.returncode == ConfigError.exit_code
    assert done.stderr == (
        "fedclip-edge: torch is not installed; install it with pip install 'fedclip-edge[agent]'\n"
    )
