"""The check of golden vectors on this machine: the errors that it finds, and its tolerances."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import BundleError
from fedclip_edge.processes.cores import usable_cores
from fedclip_edge.vision import verification
from fedclip_edge.vision.bundle import Bundle, Golden, write_bundle
from fedclip_edge.vision.encoder import open_onnx
from fedclip_edge.vision.verification import Verification, check, tolerance, verify


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_TIMED_S", 0.01)


def moved(bundle: Bundle, folder: Path, by: float, precision: str = "fp32") -> Bundle:
    """The bundle with golden features that are off by the share `by` of their norm."""
    golden = bundle.golden()
    away = np.random.default_rng(0).normal(size=golden.features.shape)  # (n, D)
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    size = by * np.linalg.norm(golden.features, axis=1, keepdims=True)
    features = (golden.features + size * away).astype(np.float32)
    manifest = replace(bundle.manifest, precision=precision, files={})
    encoder = bundle.encoder_path.read_bytes()
    return write_bundle(
        folder / "moved", manifest, encoder, bundle.classes, Golden(golden.pixels, features)
    )


def run(bundle: Bundle) -> Verification:
    return verify(bundle, EncoderConfig())


def test_a_bundle_passes_where_it_was_exported(random_bundle: Bundle) -> None:
    done = run(random_bundle)
    assert done.passes
    assert done.bit_equal
    assert [figure.found for figure in done.figures] == [0, 0, 0]
    assert (done.pictures, done.provider, done.threads) == (4, "cpu", usable_cores())
    assert done.images_per_s > 1
    check(done, random_bundle)


@pytest.mark.parametrize(
    ("by", "precision", "passes"),
    [
        (5e-6, "fp32", True),
        (1e-3, "fp32", False),
        (5e-6, "fp16", True),
        (1e-3, "fp16", False),
        (1e-2, "int8", True),
        (1e-1, "int8", False),
        (5e-6, "int8-weights", True),
        (1e-3, "int8-weights", False),
        (1e-2, "unknown", True),
        (1e-1, "unknown", False),
    ],
)
def test_how_far_features_may_be_off(
    random_bundle: Bundle, tmp_path: Path, by: float, precision: str, passes: bool
) -> None:
    bundle = moved(random_bundle, tmp_path, by, precision)
    done = run(bundle)
    assert done.passes == passes
    by_name = {figure.name: figure for figure in done.figures}
    assert by_name["relative difference"].found == pytest.approx(by, rel=0.1)
    assert 0 < by_name["largest difference, unit vectors"].found < by
    assert by_name["alone or in a batch"].found == 0
    if passes:
        check(done, bundle)
    else:
        with pytest.raises(BundleError, match=f"at most .* for {precision} on cpu.*Keep the box"):
            check(done, bundle)


def test_a_wrong_norm_shows_although_the_direction_is_right(
    random_bundle: Bundle, tmp_path: Path
) -> None:
    golden = random_bundle.golden()
    twice = Golden(golden.pixels, 2 * golden.features)
    bundle = write_bundle(
        tmp_path / "twice",
        replace(random_bundle.manifest, files={}),
        random_bundle.encoder_path.read_bytes(),
        random_bundle.classes,
        twice,
    )
    by_name = {figure.name: figure for figure in run(bundle).figures}
    assert by_name["largest difference, unit vectors"].passes
    assert by_name["relative difference"].found == pytest.approx(0.5)
    assert not by_name["relative difference"].passes


def mixing_encoder() -> bytes:
    """An encoder whose features depend on the rest of the batch, as with dynamic int8."""
    names: dict[str, list[str | int | None]] = {
        "pixel_values": ["batch", 3, 32, 32],
        "image_features": ["batch", 16],
    }
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in names.items()
    }
    head = np.random.default_rng(0).normal(size=(3 * 32 * 32, 16)).astype(np.float32)
    axes = numpy_helper.from_array(np.array([0], np.int64), "axes")
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["pixel_values"], ["flat"]),
            helper.make_node("ReduceMax", ["flat", "axes"], ["largest"], keepdims=1),
            helper.make_node("Add", ["flat", "largest"], ["mixed"]),
            helper.make_node("MatMul", ["mixed", "head"], ["image_features"]),
        ],
        "mixing",
        [values["pixel_values"]],
        [values["image_features"]],
        [numpy_helper.from_array(head, "head"), axes],
    )
    opset = [helper.make_opsetid("", 18)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString())


def test_features_that_depend_on_their_neighbours_are_found(
    random_bundle: Bundle, tmp_path: Path
) -> None:
    encoder, golden = mixing_encoder(), random_bundle.golden()
    features = open_onnx(encoder, EncoderConfig(), image_size=32).embed(golden.pixels)
    bundle = write_bundle(
        tmp_path / "mixing",
        replace(random_bundle.manifest, files={}),
        encoder,
        random_bundle.classes,
        Golden(golden.pixels, features),
    )
    done = run(bundle)
    assert not done.bit_equal
    assert [figure.passes for figure in done.figures] == [True, True, False]
    with pytest.raises(BundleError, match="alone or in a batch: "):
        check(done, bundle)


@given(st.sampled_from(["fp32", "fp16", "bf16", "int8", "int8-weights", "unknown"]))
def test_a_cpu_is_never_granted_more_than_a_gpu(precision: str) -> None:
    cpu, gpu = tolerance(precision, "cpu"), tolerance(precision, "tensorrt")
    exact = tolerance("fp32", "cpu")
    for name in ("on_unit", "relative", "batch"):
        assert getattr(exact, name) <= getattr(cpu, name) <= getattr(gpu, name)
    cuda = tolerance(precision, "cuda")
    assert cuda == gpu or (precision == "fp16" and cuda == tolerance("fp32", "cuda"))
