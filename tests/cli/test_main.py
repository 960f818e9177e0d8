"""The command as a whole: its start-up and its exit."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import system

from fedclip_edge import __version__, errors
from fedclip_edge.cli import main
from fedclip_edge.errors import ConfigError, DiskError, FedclipError


def test_it_says_its_version_and_helps() -> None:
    version = system.run("--version")
    assert (version.returncode, version.stdout.split()[-1]) == (0, __version__)
    helped = system.run("-h")
    assert helped.returncode == 0
    for command in (
        "agent",
        "broker",
        "bundle",
        "demo",
        "enroll",
        "export",
        "export-classifier",
        "predict",
        "renew",
        "revoke",
        "serve",
    ):
        assert f"  {command} " in helped.stdout


@pytest.mark.parametrize("arguments", [["serf"], ["demo", "--rounds", "none"], ["broker", "stop"]])
def test_wrong_usage_is_said_and_ends_with_2(arguments: list[str]) -> None:
    done = system.run(*arguments)
    assert done.returncode == 2
    assert "Usage:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("library", "extra", "arguments"),
    [
        ("jinja2", "all", ["demo"]),
        ("jinja2", "simulate", ["simulate", "--features", "none.npz"]),  # checked before any work
        ("onnx", "export", ["export", "tiny", "--out", "none"]),
        ("PIL", "export", ["export", "tiny", "--out", "none"]),
        ("onnxruntime", "agent", ["bundle", "verify", "none"]),
    ],
)
def test_a_missing_extra_is_named(library: str, extra: str, arguments: list[str]) -> None:
    without = (
        f"import sys; sys.modules[{library!r}] = None; sys.argv[1:] = {arguments!r}\n"
        "from fedclip_edge.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", without], capture_output=True, text=True, check=False
    )
    assert done.returncode == ConfigError.exit_code, done.stderr
    assert f"fedclip-edge: {library} is not installed" in done.stderr
    assert f"fedclip-edge[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_kind_of_error_has_an_exit_code_of_its_own() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, FedclipError) and kind is not FedclipError
    ]
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes)
    assert all(10 <= code < 30 for code in codes)


def test_an_error_keeps_its_code_when_nobody_can_read_it(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            system.command("agent", tmp_path / "agent.toml"), stderr=full, check=False
        )
    assert done.returncode == ConfigError.exit_code


def test_a_file_of_another_user_is_not_taken_for_a_full_disk() -> None:
    kind, remedy = main._of_system(PermissionError(errno.EACCES, "Permission denied", "lock"))
    assert (kind, f"uid {os.geteuid()}" in remedy) == (DiskError, True)
    assert "free disk space" in main._of_system(OSError(errno.ENOSPC, "No space", "x"))[1]
