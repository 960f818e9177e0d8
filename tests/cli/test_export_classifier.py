"""The command `fedclip-edge export-classifier`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from trained_run import train, write_mixed

from fedclip_edge import model_file
from fedclip_edge.cli.export_classifier import export_classifier
from fedclip_edge.errors import ConfigError
from fedclip_edge.vision.bundle import Bundle

pytestmark = pytest.mark.one_python
NAMES = ("circle", "square", "triangle")


def typed(bundle: Bundle, *words: str | Path) -> Result:
    words = ("--bundle", bundle.folder, *words)
    return CliRunner().invoke(export_classifier, [str(word) for word in words])


def test_a_summary_and_how_to_use_it(random_bundle: Bundle, tmp_path: Path) -> None:
    write_mixed(tmp_path / "pictures", NAMES, per_class=2)
    model_file.write(tmp_path / "m", train(random_bundle, tmp_path / "pictures"))
    out = tmp_path / "c.onnx"
    done = typed(random_bundle, "--model", tmp_path / "m", "--out", out)
    assert done.exit_code == 0, done.output
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[0] == f"Wrote {out}"
    told = dict(line.split(maxsplit=1) for line in lines[2:9])
    assert told["encoder"] == "random, none, fp32"
    assert told["model"] == "run-1234abcd, round 1 of 1 (fedclip)"
    assert told["input"] == "pixels, uint8 [batch, 32, 32, 3], red, green, blue"
    assert told["output"] == "probabilities, float32 [batch, 3]"
    assert told["difference"].endswith("from `predict`, relative")
    assert f"classifier = onnxruntime.InferenceSession({str(out)!r})" in lines
    assert lines[-1] == "print(labels[p.argmax()], p.max())"


def test_nothing_trained_must_be_meant(random_bundle: Bundle, tmp_path: Path) -> None:
    for words in ((), ("--zero-shot", "--model", "run-1")):
        done = typed(random_bundle, *words, "--out", tmp_path / "c.onnx")
        assert done.exit_code == 2
        assert "either --model RUN_OR_FILE or --zero-shot" in done.stderr
    done = typed(random_bundle, "--zero-shot", "--out", tmp_path / "c.onnx")
    assert "zero-shot: no trained model" in done.stdout


def test_a_run_that_is_not_there(
    random_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = typed(random_bundle, "--model", "run-1", "--out", tmp_path / "c.onnx")
    assert isinstance(done.exception, ConfigError)
    assert "no journal journal.sqlite" in str(done.exception)
    assert list(tmp_path.iterdir()) == []
