"""A stand-in for the package `openvino`, as a module that child processes import.

It computes with onnxruntime. A JSON file next to it says how it misbehaves, by the numbers that it
is asked for: "crash", "hang", "wrong", "fail" or "slow"; "no bf16" under "processor".
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from checkout import ROOT

_PACKAGE = """
import json, os, pathlib, signal, sys, time, types
import numpy as np
import onnxruntime

__version__ = "{version}"
assert sys.modules.get("openvino_telemetry", "") is None, "it would send events"
ACTS = json.loads((pathlib.Path(__file__).parents[1] / "acts.json").read_text())
Type = types.SimpleNamespace(f32="f32", bf16="bf16")

class Request:
    def __init__(self, session, act):
        self.session, self.act = session, act

    def infer(self, inputs, share_inputs):
        if self.act == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.act == "hang":
            time.sleep(600)
        if self.act == "fail":
            raise RuntimeError("no such kernel\\nat line 7")
        names = [output.name for output in self.session.get_outputs()]
        values = self.session.run(names, inputs)
        if self.act == "wrong":
            values = [-value for value in values]
        if self.act == "slow":
            time.sleep(0.1)
        return dict(zip(names, values))

class Compiled:
    def __init__(self, session, wanted):
        self.session, self.wanted = session, wanted

    def get_property(self, name):
        return "f32" if ACTS.get(self.wanted) == "falls back" else self.wanted

    def create_infer_request(self):
        return Request(self.session, ACTS.get(self.wanted))

class Core:
    def get_property(self, device, name):
        return ["FP32"] if ACTS.get("processor") == "no bf16" else ["BF16", "FP32"]

    def read_model(self, model):
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), providers=["CPUExecutionProvider"]
        )

    def compile_model(self, session, device, properties):
        assert device == "CPU"
        return Compiled(session, properties["INFERENCE_PRECISION_HINT"])
"""


class FakeOpenvino:
    """An installed stand-in, for this process and all that it starts."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch
        self.install()
        monkeypatch.delitem(sys.modules, "openvino", raising=False)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))

    def install(self, version: str = "1.0") -> None:
        package = self._folder / "openvino"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text(_PACKAGE.replace("{version}", version))
        self.act()

    def act(self, **acts: str) -> None:
        """Misbehave as `acts` say: f32="wrong", bf16="crash"."""
        (self._folder / "acts.json").write_text(json.dumps(acts))
