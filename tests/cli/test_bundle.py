"""The command `fedclip-edge bundle verify`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import click
import pytest
import system
from click.testing import CliRunner, Result
from fake_openvino import FakeOpenvino

from fedclip_edge.cli.bundle import bundle
from fedclip_edge.config.agent import Arithmetic, Provider
from fedclip_edge.errors import BundleError
from fedclip_edge.vision import verification
from fedclip_edge.vision.bundle import Bundle, Golden, write_bundle
from fedclip_edge.vision.manifest import RANDOM


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_TIMED_S", 0.01)


def typed(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(bundle, ["verify", str(folder), *words])


def altered(theirs: Bundle, folder: Path, factor: float) -> Path:
    """The bundle with random weights, an accepted parity and changed golden features."""
    golden = theirs.golden()
    manifest = replace(
        theirs.manifest, pretrained=RANDOM, parity={"accepted": True, "worst": 0.5}, files={}
    )
    encoder = theirs.encoder_path.read_bytes()
    other = Golden(golden.pixels, golden.features * factor)
    write_bundle(folder, manifest, encoder, theirs.classes, other)
    return folder


def test_a_table_of_what_was_found(random_bundle: Bundle) -> None:
    done = typed(random_bundle.folder, "--threads", "1")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    told = dict(line.split(maxsplit=1) for line in lines[:6] if "encoder id" not in line)
    assert told["files"] == "3, as exported (SHA-256)"
    assert told["provider"] == "cpu, 1 thread"
    assert told["speed"].endswith("images/s, without decoding pictures")
    rows = [line for line in lines if line.endswith(" ok")]
    assert [row.split()[-3:-1] for row in rows] == [
        ["0.0e+00", "1e-05"],
        ["0.0e+00", "1e-04"],
        ["0.0e+00", "1e-06"],
    ]
    assert "A picture gives the same bits alone and in a batch." in lines
    assert "parity unknown" in done.stdout
    assert lines[-1].endswith("passes on this box.")


def test_a_machine_reads_the_same(random_bundle: Bundle) -> None:
    told = json.loads(typed(random_bundle.folder, "--json").stdout)
    assert told["passes"] is True
    assert told["encoder_id"] == random_bundle.manifest.encoder_id
    assert [(c["found"], c["passes"]) for c in told["checks"]] == [(0.0, True)] * 3
    assert (told["bit_equal"], told["parity"], told["cautions"]) == (True, "unknown", [])


def test_all_providers_of_the_machine(
    random_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeOpenvino(tmp_path, monkeypatch).act(bf16="wrong")
    done = typed(random_bundle.folder)
    assert done.exit_code == 0, done.output
    _, _, table = done.stdout.partition("providers of this machine")
    head, cpu, fp32, bf16, note, reason, *_ = table.splitlines()
    assert head.split() == ["images/s", "difference"]
    for name, line in (("cpu", cpu), ("openvino", fp32)):
        assert line.split()[0] == name
        assert float(line.split()[1]) > 0
        assert line.split()[2:] == ["0%", "ok"]
    assert bf16.split() == ["openvino-bf16", "-", "-", "refused"]
    assert note.startswith("Difference: ")
    assert reason.startswith("openvino-bf16 refused: on this box ")
    told = json.loads(typed(random_bundle.folder, "--json").stdout)["other_providers"]
    assert [(one["provider"], one["passes"]) for one in told] == [
        ("openvino", True),
        ("openvino-bf16", False),
    ]


def test_a_named_provider_is_checked_alone(
    random_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeOpenvino(tmp_path, monkeypatch)
    done = typed(random_bundle.folder, "--provider", "cpu")
    assert done.exit_code == 0, done.output
    assert "openvino" not in done.stdout


def test_bf16_needs_openvino(random_bundle: Bundle) -> None:
    done = typed(random_bundle.folder, "--precision", "bf16")
    assert done.exit_code == 2
    assert "--precision: 'bf16' needs provider 'openvino' or 'auto', got 'cpu'." in done.stderr


def test_the_command_line_has_every_provider_and_precision() -> None:
    choices = {
        option.name: set(option.type.choices)
        for option in bundle.commands["verify"].params
        if isinstance(option.type, click.Choice)
    }
    assert choices["provider"] == set(get_args(Provider)) - {"auto"}
    assert choices["precision"] == set(get_args(Arithmetic)) - {"auto"}


def test_random_weights_and_an_accepted_parity_are_said(
    random_bundle: Bundle, tmp_path: Path
) -> None:
    folder = altered(random_bundle, tmp_path / "b", 1.0)
    done = typed(folder)
    assert done.exit_code == 0
    assert "Note: the encoder's weights are random" in done.stdout
    assert "Note: the encoder's features missed the parity gate" in done.stdout
    assert len(json.loads(typed(folder, "--json").stdout)["cautions"]) == 2


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_other_numbers_are_shown_and_refused(
    random_bundle: Bundle, tmp_path: Path, words: tuple[str, ...]
) -> None:
    done = typed(altered(random_bundle, tmp_path / "b", 1.01), *words)
    assert isinstance(done.exception, BundleError)
    assert "relative difference: 0.0099, at most 0.0001" in str(done.exception)
    if words:
        assert json.loads(done.stdout)["passes"] is False
    else:
        assert "TOO LARGE" in done.stdout
        assert "does NOT pass on this box" in done.stdout


def test_an_altered_file_ends_with_the_code_of_a_bundle(
    random_bundle: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(random_bundle.folder, folder)
    with (folder / "image_encoder.onnx").open("ab") as file:
        file.write(b"\0")
    done = system.run("bundle", "verify", folder)
    assert done.returncode == 12
    assert "image_encoder.onnx is not the file that manifest.json describes" in done.stderr
    assert done.stdout == ""
