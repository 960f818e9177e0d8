"""`fedclip-edge export` as it is typed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fedclip_edge.cli.export import export
from fedclip_edge.demo import tiny_clip
from fedclip_edge.errors import ConfigError
from fedclip_edge.vision.bundle import Bundle, read_bundle


def typed(*words: str | Path) -> Result:
    return CliRunner().invoke(export, [str(word) for word in words])


def process(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedclip_edge.cli.main", "export", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def own(tmp_path: Path, make_encoder: Callable[..., bytes]) -> list[str | Path]:
    """The words for somebody's own encoder, but for --out."""
    files = {name: tmp_path / name for name in ("e.onnx", "p.toml", "t.npy", "c.txt")}
    files["e.onnx"].write_bytes(make_encoder())
    files["p.toml"].write_text(
        'image_size = 32\nresize = "squash"\nresize_px = 32\ninterpolation = "bicubic"\n'
        "mean = [0, 0, 0]\nstd = [1, 1, 1]\n"
    )
    np.save(files["t.npy"], np.eye(2, 16, dtype=np.float32))
    files["c.txt"].write_text("cat\ndog\n")
    options = ("--onnx", "--preprocess", "--class-texts", "--classes")
    return [word for pair in zip(options, files.values(), strict=True) for word in pair]


def test_another_process_in_another_folder_writes_the_same_bytes(
    clip_folder: Path, clip_bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text("circle\nsquare\n")
    (tmp_path / "clip").symlink_to(clip_folder)
    words = ("local-dir:clip", "--classes", "classes.txt", "--prompt", "a {}", "--out", "bundle")
    done = process(*words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    bundle = read_bundle(tmp_path / "bundle")
    for path in clip_bundle.folder.iterdir():
        assert (tmp_path / "bundle" / path.name).read_bytes() == path.read_bytes()
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line[:2] == "  ")
    assert lines["model"] == "random-clip"
    assert lines["features"] == "128 wide, fp32"
    assert lines["activation"] == "relu"
    assert lines["classes"] == "2: circle, square"
    assert lines["prompt"] == "a {}"
    assert lines["parity"].endswith("relative, at most 1e-05 allowed")
    assert bundle.manifest.encoder_id.startswith(lines["encoder"].removeprefix("id").strip())
    assert lines["image_encoder.onnx"].endswith("MB")
    assert 'Next: name it in fleet.toml and in every agent.toml, as bundle = "' in done.stdout


def test_tiny_is_the_model_of_the_demo(tmp_path: Path) -> None:
    if not tiny_clip.FOLDER.is_dir():
        pytest.skip(f"{tiny_clip.FOLDER.name}/ is not here: train it with demo/train_tiny_clip.py")
    done = process("tiny", "--out", "bundle", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    bundle = read_bundle(tmp_path / "bundle")
    from fedclip_edge.demo import world

    assert bundle.classes.names == world.CLASSES
    assert bundle.classes.prompt == tiny_clip.PROMPT
    assert bundle.manifest.parity is not None


def test_an_own_encoder(own: list[str | Path], tmp_path: Path) -> None:
    done = typed(*own, "--out", tmp_path / "bundle")
    assert done.exit_code == 0, done.output
    assert "parity               unknown" in done.output
    assert read_bundle(tmp_path / "bundle").classes.names == ("cat", "dog")


def test_an_error_is_one_sentence_with_its_exit_code(own: list[str | Path], tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    done = process(*own, "--out", "bundle", cwd=tmp_path)
    assert done.returncode == ConfigError.exit_code
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line == "fedclip-edge: bundle exists already; name another folder, or remove it first"


def test_replace(own: list[str | Path], tmp_path: Path) -> None:
    for _ in range(2):
        assert typed(*own, "--out", tmp_path / "bundle", "--replace").exit_code == 0
    again = typed(*own, "--out", tmp_path / "bundle")
    assert isinstance(again.exception, ConfigError)


def test_words_that_make_no_command(own: list[str | Path], tmp_path: Path) -> None:
    out = ("--out", tmp_path / "bundle")
    for words, message in (
        ((), "Name a SOURCE (tiny, local-dir:FOLDER), or give --onnx."),
        (("tiny", *own), "go without SOURCE"),
        ((*own, "--prompt", "a {}"), "--prompt goes with SOURCE"),
        (own[:2], "An encoder of your own also needs --preprocess, --class-texts, --classes."),
        (("ViT-B-32",), "'ViT-B-32' is no SOURCE; write tiny, or local-dir:FOLDER."),
        (("local-dir:x",), "local-dir:x needs --classes FILE"),
    ):
        done = typed(*words, *out)
        assert done.exit_code == 2
        assert message in done.output
    assert typed("tiny").exit_code == 2
    assert not (tmp_path / "bundle").exists()


def test_many_classes_are_shortened(tmp_path: Path, own: list[str | Path]) -> None:
    (tmp_path / "c.txt").write_text("\n".join(f"class {i}" for i in range(16)))
    np.save(tmp_path / "t.npy", np.eye(16, dtype=np.float32))
    done = typed(*own, "--out", tmp_path / "bundle")
    assert "16: class 0, class 1, " in done.output
    assert "class 10, ...\n" in done.output


def test_help_shows_the_three_ways() -> None:
    text = typed("--help").output
    assert "fedclip-edge export tiny --out bundle\n" in text
    assert "fedclip-edge export local-dir:FOLDER" in text
    assert "fedclip-edge export --onnx" in text
    assert "\b" not in text


def test_asking_for_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "import fedclip_edge.cli.export\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'open_clip', 'PIL', 'numpy'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
