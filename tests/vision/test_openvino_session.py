"""OpenVINO itself, where it is installed: `make test-openvino` installs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkout import ROOT
from fake_openvino import FakeOpenvino

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import BundleError, ConfigError
from fedclip_edge.vision import openvino_session
from fedclip_edge.vision.bundle import Bundle, key_of
from fedclip_edge.vision.encoder import open_encoder, open_onnx
from fedclip_edge.vision.verification import verify

FP32 = EncoderConfig(provider="openvino", precision="fp32")
BF16 = EncoderConfig(provider="openvino", precision="bf16")

is_installed = pytest.mark.skipif(
    not openvino_session.is_installed(), reason="OpenVINO is not installed: make test-openvino"
)


def has_bf16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.skipif(openvino_session.is_installed(), reason="OpenVINO is installed")
def test_a_package_that_is_missing_is_named(random_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"'openvino' is not installed; install it with pip inst"):
        open_encoder(random_bundle, FP32)


def test_each_way_to_compute_has_its_own_feature_key(random_bundle: Bundle) -> None:
    cpu = EncoderConfig(provider="cpu", precision="fp32")
    assert len({key_of(random_bundle, one) for one in (cpu, FP32, BF16)}) == 3
    assert key_of(random_bundle, EncoderConfig()) == key_of(random_bundle, cpu)


@is_installed
def test_the_features_agree_in_fp32(clip_bundle: Bundle) -> None:
    found = verify(clip_bundle, FP32)
    assert found.passes
    assert found.provider == "openvino"


@is_installed
def test_the_features_agree_in_bf16_and_are_others(random_bundle: Bundle) -> None:
    if not has_bf16():
        pytest.skip("this processor has no bf16")
    found = verify(random_bundle, BF16)
    assert found.passes, found.figures
    assert found.figures[1].found > 1e-4  # else it computed in fp32
    assert [figure.name for figure in found.figures][-1] == "1 - cosine, mean subtracted"


@is_installed
def test_bf16_is_refused_where_it_hides_the_pictures(clip_bundle: Bundle) -> None:
    """The features of this random model differ by less than bf16 can express."""
    if not has_bf16():
        pytest.skip("this processor has no bf16")
    found = verify(clip_bundle, BF16)
    assert [figure.passes for figure in found.figures] == [True, True, True, False]


@is_installed
def test_a_feature_is_not_overwritten_by_the_next_call(random_bundle: Bundle) -> None:
    encoder = open_encoder(random_bundle, FP32)
    pixels = random_bundle.golden().pixels
    first = encoder.embed(pixels)
    kept = first.copy()
    encoder.embed(-pixels)
    np.testing.assert_array_equal(first, kept)


@is_installed
def test_the_named_one_of_several_outputs_is_taken(make_encoder: Any) -> None:
    model = make_encoder(outputs=("other", "image_features"))
    pixels = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    expected = open_onnx(model, EncoderConfig(), image_size=32).embed(pixels)
    found = open_onnx(model, FP32, image_size=32).embed(pixels)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@is_installed
def test_nothing_is_sent_or_recorded_about_this_machine(
    random_bundle: Bundle, tmp_path: Path
) -> None:
    """Its own package for that writes an id to the home folder as soon as it is imported."""
    code = (
        "import sys; from pathlib import Path\n"
        "from fedclip_edge.config.agent import EncoderConfig\n"
        "from fedclip_edge.vision.bundle import read_bundle\n"
        "from fedclip_edge.vision.encoder import open_encoder\n"
        "config = EncoderConfig(provider='openvino', precision='fp32')\n"
        "open_encoder(read_bundle(Path(sys.argv[1])), config)"
    )
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    home = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": paths}
    home["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    trace = tmp_path.parent / "trace"
    words = [sys.executable, "-c", code, str(random_bundle.folder)]
    if shutil.which("strace"):
        words = ["strace", "-f", "-e", "trace=connect", "-o", str(trace), *words]
    subprocess.run(words, check=True, env=home)
    assert list(tmp_path.iterdir()) == []
    if trace.exists():
        assert "AF_INET" not in trace.read_text()


def test_a_failing_run_is_told_in_one_line(
    random_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = FakeOpenvino(tmp_path, monkeypatch)
    stand_in.act(f32="fail")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)
    encoder = open_encoder(random_bundle, FP32)
    monkeypatch.delitem(sys.modules, "openvino")
    with pytest.raises(BundleError, match=r"failed; use provider 'cpu'.* said: no such kernel"):
        encoder.embed(random_bundle.golden().pixels)
