"""The device's programs as aarch64 binaries, emulated by qemu in a root of their own.

`make test-arm64` makes the root once and runs these tests. The rest of the system is x86-64: the
broker, the coordinator and the other device.
"""

from __future__ import annotations

import csv
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import system
from checkout import ROOT
from system import Site

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import ConfigError
from fedclip_edge.vision.bundle import Bundle, read_bundle

pytestmark = pytest.mark.arm64

ARM64 = Path(os.environ.get("ARM64_ROOT", ROOT / "build" / "arm64"))
TIMEOUT_S = 600.0  # an emulated command takes 20 s on a quiet machine


def words(*arguments: str | Path) -> list[str]:
    """A command of fedclip-edge in the root; /proc and /sys are not mounted there.

    With those of the host, onnxruntime would find an x86 processor, and end with a signal.
    """
    inside = [str(argument).removeprefix(str(ARM64)) for argument in arguments]
    python = ["env", "PYTHONPATH=/app:/libraries", "chroot", str(ARM64), "/usr/bin/python3.11"]
    return [*python, "-m", "fedclip_edge.cli.main", *inside]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words(*arguments), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A new folder in the root, next to a copy of the package."""
    if not ARM64.is_dir():
        pytest.skip(f"{ARM64} is missing; make test-arm64 makes it")
    shutil.rmtree(ARM64 / "app", ignore_errors=True)
    shutil.copytree(ROOT / "fedclip_edge", ARM64 / "app" / "fedclip_edge")
    folder = ARM64 / "tmp" / secrets.token_hex(4)
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def tiny(place: Path) -> Bundle:
    """The demo's bundle, exported on this machine."""
    done = system.run("export", "tiny", "--out", place / "tiny")
    assert done.returncode == 0, done.stderr
    return read_bundle(place / "tiny")


@pytest.fixture(scope="module")
def drawn(place: Path, tiny: Bundle) -> Path:
    system.write_pictures(place / "pictures", tiny.classes.names[:3], 3, 0)
    return place / "pictures"


def test_these_are_aarch64_programs(place: Path) -> None:
    """A child process of the emulated Python is emulated too."""
    code = (
        "import platform, subprocess, sys; print(platform.machine()); sys.stdout.flush();"
        "subprocess.run([sys.executable, '-c', 'import platform; print(platform.machine())'])"
    )
    python = ["chroot", str(ARM64), "/usr/bin/python3.11", "-c", code]
    done = subprocess.run(python, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert done.stdout.split() == ["aarch64", "aarch64"]


def test_the_features_agree_with_the_golden_vectors(tiny: Bundle) -> None:
    done = run("bundle", "verify", tiny.folder, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["passes"], found["provider"]) == (True, "cpu")


def test_predictions_are_those_of_x86(place: Path, tiny: Bundle, drawn: Path) -> None:
    rows: list[list[list[str]]] = []
    for name, start in (("x86", system.run), ("arm64", run)):
        out, cache = place / f"{name}.csv", place / f"{name}.sqlite"
        done = start("predict", drawn, "--bundle", tiny.folder, "--out", out, "--cache", cache)
        assert done.returncode == 0, done.stderr
        with out.open(newline="") as file:
            head, *body = csv.reader(file)
        at = [head.index("picture"), head.index("label")]
        rows.append([[Path(row[at[0]]).name, row[at[1]]] for row in body])
    assert len(rows[0]) == 9
    assert rows[0] == rows[1]


def test_a_provider_that_is_missing_is_found_by_a_child_process(place: Path, tiny: Bundle) -> None:
    with Site(place / "missing", tiny, BrokerAddress(), "lab") as site:
        site.folder.mkdir()
        extra = 'methods = ["ridge"]\n[encoder]\nprovider = "openvino"\n'
        done = run("agent", in_the_root(site.write_agent("north", extra=extra)), "--once")
    assert done.returncode == ConfigError.exit_code
    assert "[encoder] provider 'openvino' is not installed; install it with" in done.stderr


def test_a_device_takes_part_in_a_run(place: Path, tiny: Bundle, mosquitto: BrokerAddress) -> None:
    """Both devices train in closed form; the arm64 one has no torch."""
    with Site(place / "site", tiny, mosquitto, f"lab-{secrets.token_hex(4)}") as site:
        site.folder.mkdir()
        fleet = site.write_fleet(2, 1, method="ridge")
        fleet.write_text(fleet.read_text().replace("deadline_s = 60", "deadline_s = 400"))
        extra = 'methods = ["ridge"]'
        x86 = site.write_agent("x86", extra=extra)
        arm64 = in_the_root(site.write_agent("arm64", extra=extra))
        started = [
            site.start("serve", "--once", fleet, "--json", log="serve"),
            site.start("agent", x86, "--once", "--json", log="x86"),
            site.start_program(words("agent", arm64, "--once", "--json"), "arm64"),
        ]
        for name, process in zip(("serve", "x86", "arm64"), started, strict=True):
            assert process.wait(TIMEOUT_S) == 0, site.text(name)
        for name in ("x86", "arm64"):
            evaluated = [e for e in site.events(name) if e["event"] == "evaluated"]
            assert evaluated[-1]["round"] == 1


def in_the_root(config: Path) -> Path:
    """The same settings with paths as they are in the root."""
    config.write_text(config.read_text().replace(str(ARM64), ""))
    return config
