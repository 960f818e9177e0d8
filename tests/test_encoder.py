"""The provider asked for, the shapes promised, and the same features in any batch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from fedclip_edge.config import EncoderConfig
from fedclip_edge.errors import BundleError, ConfigError
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.encoder import Encoder, open_encoder, open_onnx

CPU = EncoderConfig()


def noise(count: int, side: int = 32) -> Any:
    return np.random.default_rng(count).normal(size=(count, 3, side, side)).astype(np.float32)


def test_gives_the_golden_features(random_bundle: Bundle) -> None:
    encoder = open_encoder(random_bundle, CPU)
    golden = random_bundle.golden()
    features = encoder.embed(golden.pixels)
    np.testing.assert_array_equal(features, golden.features)
    assert features.dtype == np.float32
    assert encoder.provider == "cpu"
    assert encoder.dim == 16


def test_features_are_raw(random_bundle: Bundle) -> None:
    norms = np.linalg.norm(open_encoder(random_bundle, CPU).embed(noise(8)), axis=1)
    assert norms.std() > 0.1


def test_a_feature_does_not_depend_on_its_batch(random_bundle: Bundle) -> None:
    encoder = open_encoder(random_bundle, CPU)
    pixels = noise(9)
    together = encoder.embed(pixels)
    for i in range(9):
        np.testing.assert_array_equal(encoder.embed(pixels[i : i + 1])[0], together[i])


def test_no_pictures_no_features(random_bundle: Bundle) -> None:
    assert open_encoder(random_bundle, CPU).embed(noise(0)).shape == (0, 16)


def test_feature_key_names_encoder_file_precision_and_provider(random_bundle: Bundle) -> None:
    key = open_encoder(random_bundle, CPU).feature_key
    assert len(key) == 64
    assert key == open_encoder(random_bundle, EncoderConfig(threads=2, batch_size=1)).feature_key
    manifest = replace(random_bundle.manifest, precision="fp16")
    assert key != open_encoder(replace(random_bundle, manifest=manifest), CPU).feature_key


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_here_is_an_error_that_lists_the_others(
    random_bundle: Bundle, provider: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_cpu = ["AzureExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: only_cpu)
    with pytest.raises(ConfigError, match=f"'{provider}' is not part of .* available: cpu. Name"):
        open_encoder(random_bundle, EncoderConfig(provider=provider))


def test_a_silent_fall_back_is_an_error(
    random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fallen:
        """What onnxruntime gives where CUDA is built in, but does not start."""

        def __init__(self, *_: object, **__: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    with pytest.raises(ConfigError, match="'cuda' did not start on this box; available: cuda, cpu"):
        open_encoder(random_bundle, EncoderConfig(provider="cuda"))


def test_threads_are_those_asked_for_and_do_not_spin(
    random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    start = onnxruntime.InferenceSession

    def spy(source: object, options: Any, **rest: Any) -> Any:
        seen.append(options)
        return start(source, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    open_encoder(random_bundle, EncoderConfig(threads=2))
    (options,) = seen
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    for pool in ("intra_op", "inter_op"):
        assert options.get_session_config_entry(f"session.{pool}.allow_spinning") == "0"


def test_a_file_that_is_no_onnx_model(random_bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(random_bundle.folder, tmp_path / "b"))
    (folder / "image_encoder.onnx").write_bytes(b"no model")
    with pytest.raises(BundleError, match=r"image_encoder\.onnx cannot be loaded as an ONNX model"):
        open_encoder(replace(random_bundle, folder=folder), CPU)


@pytest.mark.parametrize(
    ("made", "asked", "message"),
    [
        ({"side": 16}, {}, r"takes pixel_values .*16.*expected float32 \[batch, 3, 32, 32\]"),
        ({"channels": 1}, {}, r"expected float32 \[batch, 3, 32, 32\]"),
        ({"batch": 1}, {}, "takes 1 pictures at a time; export it with a dynamic batch"),
        ({"dim": 8}, {"dim": 16}, r"gives image_features .*8\]; expected float32 \[batch, 16\]"),
        ({"outputs": ("a", "b")}, {}, "gives a, b; expected one output, or one named"),
    ],
)
def test_wrong_shapes_are_named(make_encoder: Any, made: Any, asked: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        open_onnx(make_encoder(**made), CPU, image_size=32, **asked)


def test_the_named_one_of_several_outputs_is_taken(make_encoder: Any) -> None:
    model = make_encoder(outputs=("other", "image_features"))
    encoder = open_onnx(model, CPU, image_size=32)
    assert encoder.output_name == "image_features"
    assert encoder.embed(noise(2)).shape == (2, 16)


def test_nan_is_never_passed_on(make_encoder: Any) -> None:
    encoder = open_onnx(make_encoder(scale=np.inf), CPU, image_size=32)
    with pytest.raises(BundleError, match="gave NaN or infinity"):
        encoder.embed(noise(2))


def test_a_failing_run_is_told_in_one_line(random_bundle: Bundle) -> None:
    class Failing:
        def run(self, *_: object) -> None:
            raise RuntimeError("out of memory\nat line 3")

    encoder = replace(open_encoder(random_bundle, CPU), session=Failing())
    with pytest.raises(BundleError, match="failed on 2 pictures: out of memory; export"):
        encoder.embed(noise(2))


def test_output_of_another_shape_than_declared(random_bundle: Bundle) -> None:
    class Lying:
        def run(self, *_: object) -> list[Any]:
            return [np.zeros((3, 16), np.float32)]

    encoder = replace(open_encoder(random_bundle, CPU), session=Lying())
    with pytest.raises(BundleError, match=r"gave float32 \[3, 16\] for 2 pictures"):
        encoder.embed(noise(2))


@pytest.mark.parametrize(
    "pixels", [noise(2, 16), noise(2).astype(np.float64), noise(1)[0]], ids=["side", "type", "rank"]
)
def test_wrong_pixels_are_the_callers_mistake(random_bundle: Bundle, pixels: Any) -> None:
    encoder: Encoder = open_encoder(random_bundle, CPU)
    with pytest.raises(ValueError, match=r"pixels: expected float32 \[N, 3, 32, 32\]"):
        encoder.embed(pixels)


def test_the_runtime_files_nothing_about_this_machine(
    tmp_path: Path, random_bundle: Bundle
) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from fedclip_edge.config import EncoderConfig\n"
        "from fedclip_edge.vision.bundle import read_bundle\n"
        "from fedclip_edge.vision.encoder import open_encoder\n"
        "open_encoder(read_bundle(Path(sys.argv[1])), EncoderConfig())"
    )
    home = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    home.update(HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache"))
    command = [sys.executable, "-c", code, str(random_bundle.folder)]
    subprocess.run(command, check=True, env=home)
    assert list(tmp_path.iterdir()) == []
