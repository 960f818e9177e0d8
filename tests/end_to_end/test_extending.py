"""The examples of the manual's section "Extending" run as processes and show what the pages say."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys

import onnxruntime
import pytest
from checkout import ROOT

from fedclip_edge.errors import ConfigError
from fedclip_edge.vision.bundle import Bundle

EXAMPLES = ROOT / "examples"
PAGES = ROOT / "docs" / "extending"
NAMES = ("method", "strategy", "codec", "provider")
LIMIT_S = 300  # a run takes a few seconds on a quiet machine


def run(example: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / example), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def printed(example: str) -> list[str]:
    done = run(example)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def table(lines: list[str]) -> dict[str, list[float]]:
    """The figures of each row by the row's first word; the first line is the header."""
    rows = [line.split() for line in lines[1:]]
    return {name: [float(figure) for figure in figures] for name, *figures in rows}


@pytest.mark.one_python
def test_the_method_beats_zero_shot_with_the_smallest_update() -> None:
    found = table(printed("own_method.py"))
    assert list(found) == ["zeroshot", "class-bias", "class-bias:local", "linear"]
    before, after, kilobytes = found["class-bias"]
    assert found["zeroshot"][:2] == [before, before]
    assert after > before + 5
    assert found["zeroshot"][2] < kilobytes < found["linear"][2]
    assert found["class-bias:local"][1] > before + 5
    assert found["class-bias:local"][2] == 0  # a device that trains alone sends nothing


@pytest.mark.one_python
def test_the_strategy_loses_less_by_noise_than_the_mean() -> None:
    lines = printed("own_strategy.py")
    assert (lines[0], lines[4]) == ("0% of the devices send noise", "20% of the devices send noise")
    quiet, noisy = table(lines[1:4]), table(lines[5:8])
    mean, own = "linear", "linear@strategy=geometric-median"
    assert list(quiet) == list(noisy) == [mean, own]
    assert abs(quiet[own][1] - quiet[mean][1]) < 2
    # Noise is scaled to the bound of the round, so even the mean loses little.
    assert noisy[mean][1] < noisy[own][1] <= quiet[own][1]
    assert noisy[own][1] > quiet[own][1] - 1


def test_the_codec_lies_between_int8_and_fp16() -> None:
    found = table(printed("own_codec.py"))
    assert list(found) == ["fp32", "fp16", "int8", "bf16"]
    sizes, errors, summed = (
        {name: figures[i] for name, figures in found.items()} for i in range(3)
    )
    assert sizes["int8"] < sizes["bf16"] < sizes["fp16"] < sizes["fp32"]
    assert errors["int8"] > errors["bf16"] > errors["fp16"] > errors["fp32"] == 0
    assert errors["bf16"] < 2**-9  # half a step of eight bits, at most
    for name in ("fp16", "int8", "bf16"):
        assert summed[name] < errors[name] / 3  # error feedback


def test_the_provider_passes_or_the_error_names_it(random_bundle: Bundle) -> None:
    done = run("own_provider.py", str(random_bundle.folder))
    figures = re.findall(r"^([\w-]+) +(.*\S) +(\S+), at most (\S+)$", done.stdout, re.MULTILINE)
    is_here = "OpenVINOExecutionProvider" in onnxruntime.get_available_providers()
    ran = ["cpu", "openvino-ep"] if is_here else ["cpu"]
    assert [provider for provider, *_ in figures] == [name for name in ran for _ in range(3)]
    assert all(float(found) <= float(allowed) for *_, found, allowed in figures)
    assert (
        re.findall(r"^([\w-]+) +passes, \d+ pictures per second$", done.stdout, re.MULTILINE) == ran
    )
    if is_here:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        message = "[encoder] provider 'openvino-ep' is not part of this onnxruntime; available: cpu"
        assert done.stderr.startswith(message)
        assert (done.returncode, done.stderr.count("\n")) == (ConfigError.exit_code, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_its_example(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert f'--8<-- "examples/own_{name}.py"' in page
    assert f"python examples/own_{name}.py" in page


@pytest.mark.parametrize("name", NAMES)
def test_the_files_and_tests_that_a_page_names_are_there(name: str) -> None:
    """A page goes stale when a test is renamed."""
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    new = {"class_bias", "geometric_median"}  # of the files that a page has the reader write
    paths = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|md|toml))`", page))
    assert paths
    for path in paths:
        places = (ROOT / path, ROOT / "fedclip_edge" / path)
        assert any(place.exists() for place in places) or any(own in path for own in new), path
    tests = set(re.findall(r"`(test_\w+)`", page))
    known = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert tests
    assert tests <= known
