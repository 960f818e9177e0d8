"""Conversion to smaller precisions: close features, and reproducible bytes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from checkout import SUPPORT
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fedclip_edge.errors import ExportError
from fedclip_edge.exporting import static_int8
from fedclip_edge.exporting.layers import Layer, weighted_layers
from fedclip_edge.exporting.precision import convert, describe
from fedclip_edge.exporting.recipe import Precision
from fedclip_edge.records import F32

SMALLER: tuple[Precision, ...] = ("fp16", "int8-weights", "int8")


def tower(*, peak: float = 1.0, opset: int = 18) -> onnx.ModelProto:
    """A small model with every structure that the conversion treats separately.

    A stem, a depthwise convolution, a residual sum, Relu and Clip, a product followed by a bias,
    Gemm, and a product of two activations.
    """
    rng = np.random.default_rng(0)
    shapes = {
        "stem": (32, 3, 4, 4),
        "stem_bias": (32,),
        "wide": (192, 32, 3, 3),
        "wide_bias": (192,),
        "depth": (192, 1, 3, 3),
        "narrow": (32, 192, 1, 1),
        "narrow_bias": (32,),
        "mix": (32, 256),
        "mix_bias": (256,),
        "head": (96, 256),
        "head_bias": (96,),
    }
    weights = {
        name: rng.normal(0.1, 1, shape) / np.sqrt(math.prod(shape[1:]))
        for name, shape in shapes.items()
    }
    weights["wide"].flat[0] *= peak
    weights |= {"low": np.array(0.0), "high": np.array(6.0), "shape": np.array([0, 32, -1])}
    tensors = [
        numpy_helper.from_array(value.astype(np.int64 if name == "shape" else np.float32), name)
        for name, value in weights.items()
    ]
    node = helper.make_node
    nodes = [
        node("Conv", ["pixel_values", "stem", "stem_bias"], ["a"], strides=[4, 4]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "wide", "wide_bias"], ["c"], pads=[1, 1, 1, 1]),
        node("Clip", ["c", "low", "high"], ["d"]),
        node("Conv", ["d", "depth"], ["e"], pads=[1, 1, 1, 1], group=192),
        node("Relu", ["e"], ["f"]),
        node("Conv", ["f", "narrow", "narrow_bias"], ["g"]),
        node("Conv", ["b", "narrow_b"], ["g2"]),
        node("Add", ["g", "g2"], ["h"]),
        node("Reshape", ["h", "shape"], ["i"]),  # (N, 32, 16)
        node("Transpose", ["i"], ["j"], perm=[0, 2, 1]),  # (N, 16, 32)
        node("MatMul", ["j", "i"], ["scores"]),  # (N, 16, 16)
        node("Softmax", ["scores"], ["attention"]),
        node("MatMul", ["attention", "j"], ["k"]),  # (N, 16, 32)
        node("MatMul", ["k", "mix"], ["l"]),
        node("Add", ["l", "mix_bias"], ["m"]),  # (N, 16, 256)
        node("Transpose", ["m"], ["n"], perm=[0, 2, 1]),
        node("GlobalAveragePool", ["n"], ["o"]),
        node("Flatten", ["o"], ["p"]),  # (N, 256)
        node("Gemm", ["p", "head", "head_bias"], ["image_features"], transB=1),
    ]
    tensors.append(
        numpy_helper.from_array(rng.normal(size=(32, 32, 1, 1)).astype(np.float32) / 6, "narrow_b")
    )
    graph = helper.make_graph(
        nodes,
        "tower",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("image_features", TensorProto.FLOAT, ["batch", 96])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def pixels(count: int, seed: int = 1) -> F32:
    return np.random.default_rng(seed).normal(size=(count, 3, 16, 16)).astype(np.float32)


def session(model: onnx.ModelProto, options: Any = None) -> Any:
    data = model.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def features(model: onnx.ModelProto, batch: F32) -> F32:
    return np.asarray(session(model).run(None, {"pixel_values": batch})[0])


def optimised(model: onnx.ModelProto, path: Path) -> list[str]:
    """The operators that remain after ONNX Runtime has optimised the graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    session(model, options)
    return [node.op_type for node in onnx.load(path).graph.node]


def closeness(ours: F32, exact: F32) -> float:
    """The smallest cosine after centring."""
    ours, exact = ours - exact.mean(axis=0), exact - exact.mean(axis=0)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(exact, axis=1)
    return float(((ours * exact).sum(axis=1) / norms).min())


def test_fp32_is_the_graph_as_it_is() -> None:
    model = tower()
    assert convert(model, "fp32") is model
    assert describe("fp32") == {}


@pytest.mark.parametrize(
    ("precision", "least", "share"),
    [("fp16", 0.99999, 0.6), ("int8-weights", 0.999, 0.45), ("int8", 0.99, 0.40)],
)
def test_the_features_stay_close_and_the_file_is_smaller(
    precision: Precision, least: float, share: float
) -> None:
    model, batch = tower(), pixels(16)
    before = model.SerializeToString()
    smaller = convert(model, precision, [pixels(32, seed=2)])
    assert model.SerializeToString() == before
    exact = features(model, batch)
    assert least <= closeness(features(smaller, batch), exact) < 1
    assert smaller.ByteSize() < share * model.ByteSize()


@pytest.mark.parametrize("precision", ["fp16", "int8-weights"])
def test_stored_weights_cost_nothing_at_run_time(precision: Precision, tmp_path: Path) -> None:
    smaller = convert(tower(), precision)
    assert "Cast" in [node.op_type for node in smaller.graph.node]
    assert optimised(smaller, tmp_path / "a") == optimised(tower(), tmp_path / "b")


def test_int8_runs_in_integers(tmp_path: Path) -> None:
    left = optimised(convert(tower(), "int8", [pixels(32)]), tmp_path / "a")
    assert left.count("QLinearConv") == 4  # all but the stem
    assert left.count("Conv") + left.count("FusedConv") + left.count("NhwcFusedConv") == 1
    assert left.count("QLinearAdd") == 1
    # "mix" and the scores: in both, the sums are already integers.
    assert left.count("MatMulIntegerToFloat") == 2
    assert left.count("QGemm") == 1
    assert "Clip" not in left
    products = {"MatMul", "FusedMatMul"}
    # A product of two activations, one of which is a float.
    assert sum(kind in products for kind in left) == 1


@pytest.mark.parametrize("precision", SMALLER)
def test_a_feature_does_not_depend_on_its_batch(precision: Precision) -> None:
    smaller = session(convert(tower(), precision, [pixels(32, seed=2)]))
    batch = pixels(8)
    (together,) = smaller.run(None, {"pixel_values": batch})
    for start, size in [(0, 1), (7, 1), (2, 5)]:
        some = batch[start : start + size]
        (alone,) = smaller.run(None, {"pixel_values": some})
        np.testing.assert_array_equal(alone, together[start : start + size])


def test_no_kernel_can_saturate() -> None:
    """The kernels of this machine must agree with unoptimised float operators."""
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    int8 = convert(tower(), "int8", [pixels(32)])
    batch = np.abs(pixels(16)) + 1  # bright pictures: large positive activations saturate
    (exact,) = session(int8, plain).run(None, {"pixel_values": batch})
    np.testing.assert_allclose(features(int8, batch), exact, atol=0.02 * np.abs(exact).max())


@given(
    st.integers(1, 9),
    st.integers(1, 17),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e6]),
    st.integers(0, 2**32 - 1),
)
def test_no_pair_of_weights_can_overflow_16_bits(
    outputs: int, inputs: int, size: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weights = (size * rng.standard_t(2, size=(inputs, outputs))).astype(np.float32)
    layer = Layer(helper.make_node("MatMul", ["x", "w"], ["y"]), weights, 1, 1)
    scales = static_int8._weight_scales(layer)
    whole = np.round(weights.T / scales[:, None]).astype(np.int64)  # (outputs, inputs)
    assert np.abs(whole).max() <= 127
    assert np.abs(whole).max() >= 63  # the scale wastes at most one bit
    even = np.pad(whole, ((0, 0), (0, inputs % 2))).reshape(outputs, -1, 2)
    assert 255 * np.clip(even, 0, None).sum(axis=2).max() <= 32767
    assert 255 * np.clip(even, None, 0).sum(axis=2).min() >= -32768


def test_biases_take_back_the_mean_error_of_the_weights() -> None:
    calibration, batch = pixels(32, seed=2), pixels(64)
    exact = features(tower(), batch)
    corrected = features(convert(tower(), "int8-weights", [calibration]), batch)
    without = features(convert(tower(), "int8-weights"), batch)
    errors = [np.abs((some - exact).mean(axis=0)).mean() for some in (corrected, without)]
    assert errors[0] < 0.7 * errors[1]


def test_the_same_bytes_in_every_process() -> None:
    code = (
        "import hashlib, test_precision as t\n"
        "from fedclip_edge.exporting.precision import convert\n"
        "for precision in t.SMALLER:\n"
        "    made = convert(t.tower(), precision, [t.pixels(8)])\n"
        "    print(hashlib.sha256(made.SerializeToString(deterministic=True)).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": f"{SUPPORT}:{Path(__file__).parent}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_int8_needs_pictures() -> None:
    for calibration in ([], [pixels(0)]):
        with pytest.raises(ValueError, match="int8 needs pictures"):
            convert(tower(), "int8", calibration)


def test_weights_beyond_float16_are_refused() -> None:
    with pytest.raises(ExportError, match=r"weights wide reach .*float16's largest number 65504"):
        convert(tower(peak=1e9), "fp16")


def broken_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 12


def no_weights(model: onnx.ModelProto) -> None:
    del model.graph.initializer[:]


def a_branch(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(
        helper.make_attribute("body", helper.make_graph([], "g", [], []))
    )


def failing(model: onnx.ModelProto) -> None:
    model.graph.node[-1].op_type = "Gemmm"


def not_a_number(model: onnx.ModelProto) -> None:
    """Make one channel NaN before the layer "mix" reads it."""
    mix = next(node for node in model.graph.node if "mix" in node.input)
    factors = np.ones(32, np.float32)
    factors[3] = np.nan
    model.graph.initializer.append(numpy_helper.from_array(factors, "factors"))
    times = helper.make_node("Mul", [mix.input[0], "factors"], ["times"])
    model.graph.node.insert(list(model.graph.node).index(mix), times)
    next(node for node in model.graph.node if "mix" in node.input).input[0] = "times"


@pytest.mark.parametrize(
    ("damage", "precision", "message"),
    [
        (not_a_number, "int8", "computes NaN or infinity from the calibration pictures; export it"),
        (broken_opset, "int8", "int8 needs opset 13 or newer, but the graph has opset 12"),
        (no_weights, "int8", "no convolution or matrix product with constant weights"),
        (no_weights, "fp16", "no large float32 weights to store in fp16"),
        (no_weights, "int8-weights", "no large float32 weights"),
        (a_branch, "int8", "branches or loops and cannot be converted to int8"),
        (failing, "int8", "calibration pictures failed"),
        (failing, "fp16", "cannot be converted to fp16: .*Gemmm"),
    ],
)
def test_what_cannot_be_had_is_refused(
    damage: Callable[[onnx.ModelProto], None], precision: Precision, message: str
) -> None:
    model = tower()
    damage(model)
    with pytest.raises(ExportError, match=message):
        convert(model, precision, [pixels(4)] if precision == "int8" else [])


def test_dead_channels_and_silent_activations() -> None:
    """A channel of zeros, and one with tiny weights and a bias, keep their values."""
    model = tower()
    weights = {t.name: t for t in model.graph.initializer}
    wide = numpy_helper.to_array(weights["wide"]).copy()
    wide[0], wide[1] = 0, 1e-30
    weights["wide"].CopyFrom(numpy_helper.from_array(wide, "wide"))
    exact, batch = features(model, pixels(8)), pixels(8)
    assert closeness(features(convert(model, "int8", [pixels(32)]), batch), exact) > 0.98
    black = convert(tower(), "int8", [np.zeros((2, 3, 16, 16), np.float32)])
    assert np.isfinite(features(black, batch)).all()


def test_the_manifest_says_how() -> None:
    one, other = describe("int8", [pixels(4)]), describe("int8", [pixels(4, seed=9)])
    assert one["calibration_pictures"] == 4
    assert one["calibration_sha256"] != other["calibration_sha256"]
    assert one == describe("int8", [pixels(4)])
    assert "calibration_pictures" not in describe("fp16", [pixels(4)])
    assert describe("int8-weights")["block"] == 32


def test_layers_are_those_with_constant_weights() -> None:
    names = [layer.node.input[1] for layer in weighted_layers(tower())]
    assert names == ["stem", "wide", "depth", "narrow", "narrow_b", "mix", "head"]


def renamed(model: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    """Rename the inputs of nodes and the initialisers."""
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    return model


@pytest.mark.parametrize("precision", ["int8-weights", "int8"])
def test_biases_that_are_called_as_ours(precision: Precision, tmp_path: Path) -> None:
    """A layer with output `a` and a bias `a.bias`, which is a common naming in exported modules."""
    names = {"stem_bias": "a.bias", "mix_bias": "l.bias", "head_bias": "image_features.bias"}
    changed = convert(renamed(tower(), names), precision, [pixels(32)])
    plain = convert(tower(), precision, [pixels(32)])
    assert np.array_equal(features(changed, pixels(8)), features(plain, pixels(8)))


@pytest.mark.parametrize("precision", SMALLER)
def test_no_weights_are_left_that_nothing_reads(precision: Precision) -> None:
    """ONNX Runtime prints a warning for each unused weight."""
    changed = convert(tower(), precision, [pixels(32)])
    read = {name for node in changed.graph.node for name in node.input}
    assert {tensor.name for tensor in changed.graph.initializer} <= read


@pytest.mark.parametrize("precision", SMALLER)
@pytest.mark.parametrize("bias", ["", "computed"])
def test_a_bias_that_is_no_constant(precision: Precision, bias: str) -> None:
    """The bias is missing (an empty name), or behind an Identity, as for shared weights."""
    model = tower()
    model.graph.node.insert(0, helper.make_node("Identity", ["wide_bias"], ["computed"]))
    (wide,) = (node for node in model.graph.node if "wide" in node.input)
    wide.input[2] = bias
    exact = features(model, pixels(8))
    assert closeness(features(convert(model, precision, [pixels(32)]), pixels(8)), exact) > 0.98


@pytest.mark.parametrize("precision", SMALLER)
def test_a_file_that_lists_its_weights_among_the_inputs(precision: Precision) -> None:
    """IR version 3 requires this."""
    model = tower(opset=13)
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in model.graph.initializer
    )
    plain = convert(tower(opset=13), precision, [pixels(32)])
    changed = convert(model, precision, [pixels(32)])
    assert np.array_equal(features(changed, pixels(8)), features(plain, pixels(8)))
