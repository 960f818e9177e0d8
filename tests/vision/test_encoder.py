"""The encoder: the requested provider, the promised shapes, and equal features in any batch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import onnxruntime
import pytest

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import BundleError, ConfigError
from fedclip_edge.vision import encoder as encoders
from fedclip_edge.vision import tensorrt
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.encoder import Encoder, Provider, open_encoder, open_onnx
from fedclip_edge.vision.tensorrt import Builder

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
    assert key != open_encoder(random_bundle, EncoderConfig(fast=True)).feature_key
    manifest = replace(random_bundle.manifest, precision="fp16")
    assert key != open_encoder(replace(random_bundle, manifest=manifest), CPU).feature_key


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_here_is_an_error_that_lists_the_others(
    random_bundle: Bundle, provider: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_cpu = ["AzureExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: only_cpu)
    with pytest.raises(ConfigError, match=f"'{provider}' is not part of .* available: cpu. Choose"):
        open_encoder(random_bundle, EncoderConfig(provider=provider))


class OnCpu:
    """An onnxruntime that runs CUDA and TensorRT on the CPU; TensorRT writes its files."""

    START = onnxruntime.InferenceSession

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, falls_back: bool = False) -> None:
        self.falls_back = falls_back
        self.started: list[Any] = []  # the providers of each session
        self.kept: list[Any] = []  # the keyword arguments of each session
        self.batches: list[int] = []  # the batch sizes that TensorRT ran
        self.builds = 0
        self.written = b"engine"  # the content of an engine file on disk
        names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
        monkeypatch.setattr(onnxruntime, "InferenceSession", self.start)
        monkeypatch.setattr(
            tensorrt, "find_builder", lambda version, _: Builder(version, "10.3.0", "Orin sm87 16")
        )
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")  # so that monkeypatch restores it
        monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")

    def start(self, source: Any, options: Any, *, providers: Any, **kept: Any) -> Any:
        self.started.append(providers)
        self.kept.append(kept)
        real = OnCpu.START(source, options, providers=["CPUExecutionProvider"], **kept)
        first = providers[0] if isinstance(providers[0], str) else providers[0][0]
        if first.startswith("Tensorrt"):
            return self._tensorrt(real, Path(providers[0][1]["trt_engine_cache_path"]))
        return Named(real, real.get_providers()[0] if self.falls_back else first)

    def _tensorrt(self, real: Any, folder: Path) -> Any:
        kept = next(folder.glob("*.engine"), None)
        if kept is None:
            self.builds += 1
            (folder / "TRTKernel_sm87.engine").write_bytes(self.written)
            (folder / "cache_sm87.timing").write_bytes(b"timings")
        whole = kept is None or kept.read_bytes() == b"engine"  # a new engine runs from memory
        return Named(real, "TensorrtExecutionProvider", self.batches if whole else None)


class Named:
    """A session that reports `provider` as its provider."""

    def __init__(self, real: Any, provider: str, batches: list[int] | None = None) -> None:
        self.real, self.provider, self.batches = real, provider, batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_providers(self) -> list[str]:
        return [self.provider]

    def run(self, outputs: Any, inputs: dict[str, Any]) -> Any:
        if self.provider.startswith("Tensorrt"):
            if self.batches is None:
                raise RuntimeError("the engine cannot be read")
            self.batches.append(len(inputs["pixel_values"]))
        return self.real.run(outputs, inputs)


def test_a_silent_fall_back_is_an_error(
    random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    OnCpu(monkeypatch, falls_back=True)
    message = "'cuda' did not start on this box; available: tensorrt, cpu. Choose"
    with pytest.raises(ConfigError, match=message):
        open_encoder(random_bundle, EncoderConfig(provider="cuda"))


def test_a_provider_that_fails_is_not_replaced_in_the_middle_of_a_run(
    random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = OnCpu(monkeypatch)
    providers: list[Literal["cpu", "cuda", "tensorrt"]] = ["cpu", "cuda", "tensorrt"]
    for provider in providers:
        open_encoder(random_bundle, EncoderConfig(provider=provider, engine_dir=tmp_path))
    assert {kept["enable_fallback"] for kept in runtime.kept} == {0}
    # In onnxruntime this means that a failed session is not created again with another provider.
    session = OnCpu.START(
        random_bundle.encoder_path, providers=["CPUExecutionProvider"], enable_fallback=0
    )
    assert session._enable_fallback is False


def test_cuda_computes_fp32_in_fp32(random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = OnCpu(monkeypatch)
    encoder = open_encoder(random_bundle, EncoderConfig(provider="cuda"))
    assert runtime.started == [
        ["CPUExecutionProvider"],
        [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
    ]
    assert (encoder.provider, encoder.max_batch) == ("cuda", None)


def test_a_registered_provider_starts_with_its_options(
    random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "_PROVIDERS", dict(encoders._PROVIDERS))
    runtime, mine = OnCpu(monkeypatch), EncoderConfig(provider=cast("Any", "mine"))
    encoders.register("mine", Provider("MyExecutionProvider", {"device_type": "NPU"}))
    with pytest.raises(
        ConfigError, match=r"'mine' is not part of .* available: tensorrt, cuda, cpu"
    ):
        open_encoder(random_bundle, mine)
    names = ["MyExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    encoder = open_encoder(random_bundle, mine)
    assert runtime.started[-1] == [
        ("MyExecutionProvider", {"device_type": "NPU"}),
        "CPUExecutionProvider",
    ]
    assert encoder.provider == "mine"
    assert encoder.feature_key != open_encoder(random_bundle, CPU).feature_key
    runtime.falls_back = True
    with pytest.raises(ConfigError, match="'mine' did not start on this box; available: cpu"):
        open_encoder(random_bundle, mine)


def test_a_registered_provider_does_not_replace_another() -> None:
    with pytest.raises(ValueError, match="there is a provider 'cpu' already"):
        encoders.register("cpu", Provider("CUDAExecutionProvider"))
    assert encoders._PROVIDERS["cpu"] == Provider("CPUExecutionProvider")


def test_the_cpu_alone_is_started_for_the_cpu(
    random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = OnCpu(monkeypatch)
    assert open_encoder(random_bundle, CPU).max_batch is None
    assert runtime.started == [["CPUExecutionProvider"]]
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ


def test_an_engine_is_built_once(
    random_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runtime = OnCpu(monkeypatch)
    config = EncoderConfig(provider="tensorrt", engine_dir=tmp_path / "engines")
    encoder = open_encoder(random_bundle, config)
    said = capsys.readouterr().out
    assert 'tensorrt_engine_building takes="several minutes, only this once"' in said
    assert "tensorrt_engine_built" in said
    name, options = runtime.started[-1][0]
    assert name == "TensorrtExecutionProvider"
    assert runtime.started[-1][1:] == [
        ("CUDAExecutionProvider", {"use_tf32": "0"}),
        "CPUExecutionProvider",
    ]
    assert options["trt_profile_max_shapes"] == "pixel_values:32x3x32x32"
    assert options["trt_fp16_enable"] == "False"
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    sha256 = str(random_bundle.manifest.files["image_encoder.onnx"])
    (engine,) = (tmp_path / "engines").rglob("*.engine")
    assert engine.parent.name == sha256
    runs_on = f"ort-{onnxruntime.__version__}_trt-10.3.0_Orin-sm87-16_b1-8-32"
    assert engine.parent.parent.name == runs_on
    assert set(runtime.batches) == {1, 32}

    np.testing.assert_array_equal(
        open_encoder(random_bundle, config).embed(noise(3)), encoder.embed(noise(3))
    )
    assert runtime.builds == 1
    assert "tensorrt_engine" not in capsys.readouterr().out
    assert runtime.started[-1][0][1]["trt_engine_cache_path"] == str(engine.parent)


def test_another_encoder_of_the_same_file_name_has_another_engine(
    random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = OnCpu(monkeypatch)
    config = EncoderConfig(provider="tensorrt", engine_dir=tmp_path)
    files = {**random_bundle.manifest.files, "image_encoder.onnx": "ab" * 32}
    tuned = replace(random_bundle, manifest=replace(random_bundle.manifest, files=files))
    open_encoder(random_bundle, config)
    open_encoder(tuned, config)
    assert runtime.builds == 2
    assert len(list(tmp_path.rglob("*.engine"))) == 2


def test_a_batch_never_exceeds_the_engine(
    random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = OnCpu(monkeypatch)
    config = EncoderConfig(provider="tensorrt", batch_size=70, engine_dir=tmp_path)
    encoder = open_encoder(random_bundle, config)
    runtime.batches.clear()
    features = encoder.embed(noise(70))
    assert runtime.batches == [32, 32, 6]
    np.testing.assert_array_equal(features, open_encoder(random_bundle, CPU).embed(noise(70)))


def test_tensorrt_runs_fp16_in_fp16_and_refuses_8_bit(
    random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = OnCpu(monkeypatch)
    config = EncoderConfig(provider="tensorrt", engine_dir=tmp_path / "engines")

    def stored(precision: str) -> Bundle:
        return replace(random_bundle, manifest=replace(random_bundle.manifest, precision=precision))

    with pytest.raises(ConfigError, match=r"which is int8: .* --precision fp16"):
        open_encoder(stored("int8"), config)
    assert not (tmp_path / "engines").exists()
    open_encoder(stored("fp16"), config)
    assert runtime.started[-1][0][1]["trt_fp16_enable"] == "True"
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ


def test_an_engine_that_does_not_run_is_not_kept(
    random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    OnCpu(monkeypatch)

    def fail(*_: object) -> None:
        raise RuntimeError("out of GPU memory\nat line 3")

    monkeypatch.setattr(Named, "run", fail)
    config = EncoderConfig(provider="tensorrt", engine_dir=tmp_path / "engines")
    message = (
        "'tensorrt' failed on its first pictures: there is not enough memory; .* out of GPU memory"
    )
    with pytest.raises(ConfigError, match=message):
        open_encoder(random_bundle, config)
    assert list((tmp_path / "engines").rglob("*")) == []


def test_an_engine_that_a_full_disk_cut_short_is_not_kept(
    random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    OnCpu(monkeypatch).written = b"eng"
    config = EncoderConfig(provider="tensorrt", engine_dir=tmp_path / "engines")
    with pytest.raises(ConfigError, match="the engine cannot be read"):
        open_encoder(random_bundle, config)
    assert list((tmp_path / "engines").rglob("*")) == []


def test_an_engine_that_no_longer_loads_is_built_again(
    random_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runtime = OnCpu(monkeypatch)
    config = EncoderConfig(provider="tensorrt", engine_dir=tmp_path)
    open_encoder(random_bundle, config)
    (engine,) = tmp_path.rglob("*.engine")
    engine.write_bytes(b"damaged")
    tensorrt_of = runtime._tensorrt

    def loads(real: Any, folder: Path) -> Any:
        if any(kept.read_bytes() == b"damaged" for kept in folder.glob("*.engine")):
            raise RuntimeError("could not deserialize engine from cache")
        return tensorrt_of(real, folder)

    monkeypatch.setattr(runtime, "_tensorrt", loads)
    again = open_encoder(random_bundle, config)
    assert again.embed(noise(2)).shape == (2, 16)
    assert (runtime.builds, engine.read_bytes()) == (2, b"engine")
    assert "could not deserialize engine" in capsys.readouterr().out
    open_encoder(random_bundle, config)
    assert runtime.builds == 2


def test_an_engine_is_kept_if_no_new_one_can_be_built(
    random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The GPU may be away for a while."""
    OnCpu(monkeypatch)
    config = EncoderConfig(provider="tensorrt", engine_dir=tmp_path)
    open_encoder(random_bundle, config)
    (engine,) = tmp_path.rglob("*.engine")
    monkeypatch.setattr(Named, "get_providers", lambda _: ["CPUExecutionProvider"])
    with pytest.raises(ConfigError, match="did not start on this box"):
        open_encoder(random_bundle, config)
    assert engine.read_bytes() == b"engine"


def test_an_engine_needs_the_hash_it_is_kept_by(
    make_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    OnCpu(monkeypatch)
    with pytest.raises(ValueError, match="sha256: "):
        open_onnx(make_encoder(), EncoderConfig(provider="tensorrt"), image_size=32)


def test_a_wrong_file_is_told_before_an_engine_is_built(
    make_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = OnCpu(monkeypatch)
    with pytest.raises(BundleError, match=r"expected float32 \[batch, 3, 32, 32\]"):
        open_onnx(make_encoder(side=16), EncoderConfig(provider="tensorrt"), image_size=32)
    assert runtime.started == [["CPUExecutionProvider"]]


def test_a_session_on_the_cpu_has_one_thread_which_does_not_spin(
    random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    start = onnxruntime.InferenceSession

    def spy(source: object, options: Any, **rest: Any) -> Any:
        seen.append(options)
        return start(source, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    open_encoder(random_bundle, EncoderConfig(threads=2))  # each of them runs a batch (pace.py)
    (options,) = seen
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
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
        (
            {"side": 16},
            {},
            r"the input pixel_values of .*16.*expected float32 \[batch, 3, 32, 32\]",
        ),
        ({"channels": 1}, {}, r"expected float32 \[batch, 3, 32, 32\]"),
        ({"batch": 1}, {}, "has a fixed batch size of 1; export it with a dynamic batch size"),
        (
            {"dim": 8},
            {"dim": 16},
            r"the output image_features of .*8\]; expected float32 \[batch, 16\]",
        ),
        (
            {"outputs": ("a", "b")},
            {},
            "has the outputs a, b; expected only one output, or one named",
        ),
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


def test_one_picture_in_8_bits_is_computed_as_in_a_larger_batch(make_encoder: Any) -> None:
    for precision, sizes in (("int8", [2, 3]), ("fp32", [1, 3])):
        encoder = open_onnx(make_encoder(), CPU, image_size=32, precision=precision)
        session = Sizes(encoder.session)
        alone = replace(encoder, session=session).embed(noise(3)[:1])
        assert alone.shape == (1, 16)
        np.testing.assert_array_equal(alone, replace(encoder, session=session).embed(noise(3))[:1])
        assert session.seen == sizes


class Sizes:
    """An onnxruntime session that notes the size of each batch."""

    def __init__(self, session: Any) -> None:
        self.session, self.seen = session, list[int]()

    def run(self, names: Any, feeds: dict[str, Any]) -> Any:
        self.seen += [len(pixels) for pixels in feeds.values()]
        return self.session.run(names, feeds)


def test_nan_is_never_passed_on(make_encoder: Any) -> None:
    encoder = open_onnx(make_encoder(scale=np.inf), CPU, image_size=32)
    with pytest.raises(BundleError, match="returned NaN or infinity"):
        encoder.embed(noise(2))


def test_a_failing_run_is_told_in_one_line(random_bundle: Bundle) -> None:
    class Failing:
        def run(self, *_: object) -> None:
            raise RuntimeError("out of memory\nat line 3")

    encoder = replace(open_encoder(random_bundle, CPU), session=Failing())
    with pytest.raises(
        BundleError,
        match=r"failed on 2 pictures: there is not enough memory; .* said: out of memory",
    ):
        encoder.embed(noise(2))


def test_output_of_another_shape_than_declared(random_bundle: Bundle) -> None:
    class Lying:
        def run(self, *_: object) -> list[Any]:
            return [np.zeros((3, 16), np.float32)]

    encoder = replace(open_encoder(random_bundle, CPU), session=Lying())
    with pytest.raises(BundleError, match=r"returned float32 \[3, 16\] for 2 pictures"):
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
        "from fedclip_edge.config.agent import EncoderConfig\n"
        "from fedclip_edge.vision.bundle import read_bundle\n"
        "from fedclip_edge.vision.encoder import open_encoder\n"
        "open_encoder(read_bundle(Path(sys.argv[1])), EncoderConfig())"
    )
    home = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    home.update(HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache"))
    command = [sys.executable, "-c", code, str(random_bundle.folder)]
    subprocess.run(command, check=True, env=home)
    assert list(tmp_path.iterdir()) == []
