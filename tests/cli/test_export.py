"""The command `fedclip-edge export`."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import system
from click.testing import CliRunner, Result
from small_models import registered

from fedclip_edge.cli.export import export
from fedclip_edge.demo import world
from fedclip_edge.errors import ConfigError, ExportError
from fedclip_edge.exporting.recipe import PROMPT
from fedclip_edge.vision.bundle import Bundle, read_bundle

pytestmark = pytest.mark.one_python
_DEADLINE_S = 120.0


def typed(*words: str | Path) -> Result:
    return CliRunner().invoke(export, [str(word) for word in words])


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "fedclip_edge.cli.main", "export", *map(str, words)]


def process(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def own(tmp_path: Path, make_encoder: Callable[..., bytes]) -> list[str | Path]:
    """The arguments that export an external encoder, without --out."""
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


def rows(text: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in text.splitlines() if line[:2] == "  ")


def test_another_process_in_another_folder_writes_the_same_bytes(
    clip_folder: Path, clip_bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text("circle\nsquare\n")
    (tmp_path / "clip").symlink_to(clip_folder)
    words = ("local-dir:clip", "--classes", "classes.txt", "--prompt", "a {}", "--out", "bundle")
    done = process(*words, cwd=tmp_path)
    assert done.returncode == 0
    bundle = read_bundle(tmp_path / "bundle")
    for path in clip_bundle.folder.iterdir():
        assert (tmp_path / "bundle" / path.name).read_bytes() == path.read_bytes()
    lines = rows(done.stdout)
    assert lines["model"] == "random-clip, local-dir"
    assert lines["features"] == "128 wide, fp32"
    assert lines["activation"] == "relu"
    assert lines["classes"] == "2: circle, square"
    assert lines["prompt"] == "a {}"
    assert lines["parity"].startswith("passed; largest difference ")
    assert bundle.manifest.encoder_id.startswith(lines["encoder"].removeprefix("id").strip())
    assert lines["image_encoder.onnx"].endswith("MB")
    assert 'Next: write bundle = "bundle" in fleet.toml, and sign it' in done.stdout
    assert "\nfedclip-edge bundle sign bundle --key site/export/export.key\n" in done.stdout
    steps = done.stderr.splitlines()
    assert steps[0].startswith("loading local-dir:")
    assert [line for line in steps if "at most 1e-05  ok" in line]


def test_tiny_is_the_model_of_the_demo(tmp_path: Path) -> None:
    done = process("tiny", "--precision", "fp16", "--out", "bundle", cwd=tmp_path)
    assert done.returncode == 0
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.classes.names == world.CLASSES
    assert bundle.classes.prompt == PROMPT
    assert bundle.manifest.precision == "fp16"
    # The generated pictures belong to the classes of the model.
    assert "zero-shot accuracy" in done.stderr


def test_a_recipe_with_other_weights_and_prompts(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("classes.txt", "prompts.json", "small.toml")}
    files["classes.txt"].write_text("cat\ndog\n")
    files["prompts.json"].write_text(json.dumps(["a {}", "the {}"]))
    files["small.toml"].write_text(
        'model = "small-quickgelu"\npretrained = "quick_e1"\nprecision = "fp16"\n'
    )
    words = ("--random-weights", "--prompts", files["prompts.json"], "--out", tmp_path / "bundle")
    (tmp_path / "configurations").mkdir()
    with registered(tmp_path / "configurations"):
        done = typed(files["small.toml"], "--classes", files["classes.txt"], *words)
    assert done.exit_code == 0, done.output
    manifest = read_bundle(tmp_path / "bundle").manifest
    assert (manifest.model, manifest.pretrained) == ("small-quickgelu", "random")
    assert (manifest.activation, manifest.precision) == ("quick_gelu", "fp16")
    assert manifest.preprocessing.resize == "squash"  # as in the registered tag
    assert rows(done.stdout)["prompt"] == "a {} | the {}"
    assert "the encoder's weights are random" in done.stdout


def test_a_killed_export_leaves_nothing(clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("a\nb\n")
    words = (f"local-dir:{clip_folder}", "--classes", tmp_path / "c.txt", "--out", "out/bundle")
    for number in (signal.SIGTERM, signal.SIGKILL):
        with system.running(
            command(*words), cwd=tmp_path, stderr=subprocess.PIPE, text=True
        ) as at_work:
            assert at_work.stderr is not None
            assert at_work.stderr.readline().startswith("loading")
            at_work.send_signal(number)
            at_work.communicate(timeout=_DEADLINE_S)
        assert at_work.returncode in (-number, 128 + number)
        assert [path.name for path in tmp_path.iterdir()] == ["c.txt"]


def test_other_classes_for_a_bundle(clip_folder: Path, clip_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(clip_bundle.folder, tmp_path / "bundle")
    (tmp_path / "c.txt").write_text("star\nsquare\nmoon\n")
    words = ("--bundle", "bundle", "--classes", "c.txt")
    done = process(*words, cwd=tmp_path)
    assert done.returncode == ConfigError.exit_code
    assert "name the weights as for the export: local-dir:FOLDER" in done.stderr
    done = process(f"local-dir:{clip_folder}", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Changed the classes of bundle to 3: star, square, moon" in done.stdout
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.manifest.encoder_id == clip_bundle.manifest.encoder_id
    assert bundle.encoder_path.read_bytes() == clip_bundle.encoder_path.read_bytes()


def test_other_vectors_for_a_bundle(own: list[str | Path], tmp_path: Path) -> None:
    assert typed(*own, "--out", tmp_path / "bundle").exit_code == 0
    (tmp_path / "n.txt").write_text("tea\ncoffee\n")
    words = ("--bundle", tmp_path / "bundle", "--classes", tmp_path / "n.txt")
    done = typed(*words, "--class-texts", tmp_path / "t.npy")
    assert done.exit_code == 0, done.output
    assert read_bundle(tmp_path / "bundle").classes.names == ("tea", "coffee")
    without = typed(*words)
    assert isinstance(without.exception, ConfigError)
    assert "--class-texts FILE.npy" in str(without.exception)


def test_an_own_encoder(own: list[str | Path], tmp_path: Path) -> None:
    done = typed(*own, "--out", tmp_path / "bundle")
    assert done.exit_code == 0, done.output
    assert "parity               unknown" in done.output
    assert read_bundle(tmp_path / "bundle").classes.names == ("cat", "dog")


def test_an_own_encoder_in_fewer_bytes_is_judged_on_drawn_pictures(
    tmp_path: Path, own: list[str | Path], make_encoder: Callable[..., bytes]
) -> None:
    (tmp_path / "e.onnx").write_bytes(make_encoder(dim=256))
    np.save(tmp_path / "t.npy", np.eye(2, 256, dtype=np.float32))
    done = typed(*own, "--precision", "fp16", "--out", tmp_path / "bundle")
    assert done.exit_code == 0, done.output
    manifest = read_bundle(tmp_path / "bundle").manifest
    assert manifest.precision == "fp16"
    assert manifest.parity is not None
    assert manifest.parity["source"] == "drawn"


def test_an_error_is_one_sentence_with_its_exit_code(own: list[str | Path], tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    done = process(*own, "--out", "bundle", cwd=tmp_path)
    assert done.returncode == ConfigError.exit_code
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line == "fedclip-edge: bundle already exists and is not a bundle; name another folder"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ViT-B-23", "--pretrained", "openai"), "did you mean ViT-B-32"),
        (("ViT-B-32", "--pretrained", "laion2b_s34b"), "laion2b_s34b_b79k"),
        (("ViT-B-32", "--pretrained", "openai"), "export ViT-B-32-quickgelu"),
        (("ViT-B-32",), "needs weights"),
        (("ViT-B-32", "--pretrained", "none.pt"), "none.pt does not exist"),
        (("ViT-B-32", "--pretrained", "openai", "--random-weights"), "exclude each other"),
        (("none.toml",), "none.toml does not exist"),
        (("tiny", "--prompt", "no place"), "needs exactly one {}"),
        (("tiny", "--calibration", "none"), "none does not exist"),
        (("tiny", "--calibration", "few"), "few has 3 picture files"),
        (("tiny", "--precision", "int8"), "give --calibration FOLDER"),
    ],
)
def test_bad_input_is_said_and_leaves_nothing(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.txt").write_text("cat\ndog\n")
    Path("few").mkdir()
    for seed in range(3):
        world.draw("boat", "photo", seed).save(f"few/{seed}.png")
    done = typed(*words, "--classes", "c.txt", "--out", "out/bundle")
    assert isinstance(done.exception, ConfigError), done.output
    assert message in str(done.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.txt", "few"]


def test_calibration_pictures_that_are_not_used_are_named(tmp_path: Path) -> None:
    for seed in range(65):
        world.draw("boat", "photo", seed).save(tmp_path / f"{seed}.png")
    (tmp_path / "letter.png").write_text("this is no picture")
    (tmp_path / "usb").symlink_to(tmp_path / "unplugged")
    done = typed("tiny", "--calibration", tmp_path, "--out", tmp_path / "bundle")
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    gone = f"it is a link to {tmp_path}/unplugged, which does not exist"
    assert f"skipped {tmp_path}/usb: {gone}" in lines
    assert f"skipped {tmp_path}/letter.png: it is not a picture in a known format" in lines


def test_no_hub_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("cat\ndog\n")
    words = ("ViT-B-32-quickgelu", "--pretrained", "openai", "--classes", "c.txt", "--out", "b")
    done = subprocess.run(
        command(*words),
        cwd=tmp_path,
        env={"PATH": "", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExportError.exit_code, done.stderr
    assert "--pretrained FILE" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "b").exists()


def test_replace(own: list[str | Path], tmp_path: Path) -> None:
    for _ in range(2):
        assert typed(*own, "--out", tmp_path / "bundle", "--replace").exit_code == 0
    again = typed(*own, "--out", tmp_path / "bundle")
    assert isinstance(again.exception, ConfigError)


def test_words_that_make_no_command(own: list[str | Path], tmp_path: Path) -> None:
    out = ("--out", tmp_path / "bundle")
    bundle = ("--bundle", tmp_path / "bundle")
    for words, message in (
        (
            out,
            "Give a SOURCE (a recipe, a model of open_clip, or tiny), or an encoder with --onnx.",
        ),
        (("tiny",), "Give the folder to write with --out FOLDER."),
        (("tiny", *own, *out), "--onnx can only be used without SOURCE"),
        ((*own, "--prompt", "a {}", *out), "--prompt can only be used with SOURCE"),
        ((*own, "--pretrained", "x", *out), "--pretrained can only be used with SOURCE"),
        ((*own[:2], *out), "--onnx also needs --preprocess, --class-texts, --cl"),
        (("ViT-B-32", *out), "ViT-B-32 needs --classes FILE"),
        (("tiny", "--prompt", "a {}", "--prompts", "x", *out), "--prompt or --prompts, not both"),
        (("tiny", "--precision", "int4", *out), "'int4' is not one of"),
        (bundle, "--bundle needs --classes FILE"),
        ((*bundle, *out), "--out can only be used without --bundle"),
        (
            (*bundle, "--classes", "x", "--precision", "fp16"),
            "--precision can only be used without --bundle",
        ),
        (
            (*bundle, "--classes", "x", "--pretrained", "y"),
            "--pretrained can only be used with SOURCE",
        ),
    ):
        done = typed(*words)
        assert done.exit_code == 2, words
        assert message in " ".join(done.output.split()), words
    assert not (tmp_path / "bundle").exists()


def test_many_classes_are_shortened(tmp_path: Path, own: list[str | Path]) -> None:
    (tmp_path / "c.txt").write_text("\n".join(f"class {i}" for i in range(16)))
    np.save(tmp_path / "t.npy", np.eye(16, dtype=np.float32))
    done = typed(*own, "--out", tmp_path / "bundle")
    assert "16: class 0, class 1, " in done.output
    assert "class 10, ...\n" in done.output


def test_help_shows_the_ways() -> None:
    text = typed("--help").output
    assert "fedclip-edge export export/vit-b-32.toml" in text
    assert "fedclip-edge export tiny --out bundle\n" in text
    assert "fedclip-edge export --onnx" in text
    assert "fedclip-edge export --bundle" in text
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


def test_class_names_that_look_the_same_are_shown_by_their_numbers(
    own: list[str | Path], tmp_path: Path
) -> None:
    (tmp_path / "c.txt").write_text("Caf\u00e9\nCafe\u0301\n", encoding="utf-8")
    done = process(*own, "--out", tmp_path / "bundle", cwd=tmp_path)
    assert done.returncode == 10
    assert "look the same, but are spelled differently in Unicode" in done.stderr
    assert "(U+00E9 and U+0065 U+0301); keep one" in done.stderr
    assert not (tmp_path / "bundle").exists()


def test_class_names_are_written_in_one_unicode_form(own: list[str | Path], tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes("Cafe\u0301\r\ntea\r\n".encode("utf-16"))
    assert typed(*own, "--out", tmp_path / "bundle").exit_code == 0
    assert read_bundle(tmp_path / "bundle").classes.names == ("Caf\u00e9", "tea")
