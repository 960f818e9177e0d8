"""Conversion of an fp32 graph to another precision.

    fp32          the graph as it is
    fp16          weights stored in half the bytes; a CPU computes in fp32, at fp32's speed
    int8-weights  weights stored in 28 % of the bytes; computed in fp32, at fp32's speed
    int8          8-bit products as well (exporting/static_int8.py); needs pictures to calibrate on

Operators in the graph convert stored weights to fp32. They work on constants, so ONNX Runtime runs
them when it loads the file, and they cost nothing afterwards. They are standard operators, so every
provider supports them. `MatMulNBits`, which multiplies 8-bit weights directly, was not chosen: it
reached 0.68 to 0.86 of fp32's speed on a CPU with AVX2 but not VNNI, does not support convolutions,
and is not a standard operator but ONNX Runtime's own.

Dynamic int8 is not offered: it scales activations by the whole batch, so a feature would depend
on the other pictures of its batch and could not be cached.

Law: the same graph and the same pictures give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fedclip_edge.errors import ExportError, reason_of
from fedclip_edge.exporting import static_int8
from fedclip_edge.exporting.layers import Array, correct_biases
from fedclip_edge.exporting.recipe import Precision
from fedclip_edge.records import F32, Scalar

# Smaller weights (norms, biases, depthwise kernels) stay in fp32: they are a few per cent of the
# bytes and the most sensitive. Keeping them halves the error of MobileNetV2's fp16 features.
_STORED_VALUES = 16384
_FP16_MAX = float(np.finfo(np.float16).max)
BLOCK = 32  # weights that share a scale (1.125 bytes a weight); 64 and 128 are no more accurate


def convert(
    model: onnx.ModelProto, precision: Precision, calibration: Sequence[F32] = ()
) -> onnx.ModelProto:
    """Convert `model`, whose weights are fp32, to another precision; `model` is not changed.

    For "fp32" the result is `model` itself. `calibration` are batches of pixels float32
    (N, 3, S, S): int8 needs them, and int8-weights uses them, if given, to correct its biases.
    Raises ValueError for int8 without pictures, ExportError if the graph cannot be converted to
    this precision.
    """
    if precision == "int8" and not sum(map(len, calibration)):
        raise ValueError("calibration: int8 needs pictures, got none")
    if precision == "fp32":
        return model
    if any(a.type == onnx.AttributeProto.GRAPH for n in model.graph.node for a in n.attribute):
        raise ExportError(
            f"the graph has branches or loops and cannot be converted to {precision}; export it in "
            "fp32"
        )
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    # IR 3 must list weights as inputs, where a caller could replace them; IR 4 need not.
    changed.ir_version = max(changed.ir_version, 4)
    weights = {tensor.name for tensor in changed.graph.initializer}
    inputs = [value for value in changed.graph.input if value.name not in weights]
    del changed.graph.input[:]
    changed.graph.input.extend(inputs)
    if precision == "fp16":
        _store(changed, _as_fp16, "fp16")
    elif precision == "int8-weights":
        if sum(map(len, calibration)):
            correct_biases(changed, calibration, _after_int8_storage)
        _store(changed, _as_int8, "int8-weights")
    else:
        static_int8.quantise(changed, calibration)
    try:
        onnx.checker.check_model(changed)
    except Exception as error:  # the checker's errors and protobuf's share no base but Exception
        raise ExportError(
            f"the graph cannot be converted to {precision}: {reason_of(error)}; export it in fp32"
        ) from error
    return changed


def describe(precision: Precision, calibration: Sequence[F32] = ()) -> Mapping[str, Scalar]:
    """Description of the conversion, for the manifest; empty for fp32.

    With `calibration` (batches of pixels float32 (N, 3, S, S)), the description of int8 and
    int8-weights includes the number of pictures and the SHA-256 of their pixels.
    """
    schemes: dict[Precision, dict[str, Scalar]] = {
        "fp32": {},
        "fp16": {"scheme": "weights stored in float16, computed in float32"},
        "int8-weights": {
            "scheme": "weights stored in 8 bits, computed in float32",
            "block": BLOCK,
        },
        "int8": {
            "scheme": "static QDQ, unsigned 8-bit activations, signed 8-bit weights per channel",
            "ranges": "smallest and largest value seen",
            "weights": "scaled so that no pair saturates 16 bits",
        },
    }
    table = schemes[precision]
    pictures = sum(map(len, calibration))
    if not pictures or precision not in ("int8", "int8-weights"):
        return table
    digest = hashlib.sha256()
    for pixels in calibration:
        digest.update(np.ascontiguousarray(pixels).data)
    return {
        **table,
        "biases": "corrected for the mean error of the weights",
        "calibration_pictures": pictures,
        "calibration_sha256": digest.hexdigest(),
    }


_Stored = tuple[list[onnx.TensorProto], list[onnx.NodeProto]]


def _store(
    model: onnx.ModelProto, smaller: Callable[[str, F32], _Stored | None], precision: str
) -> None:
    """Replace every large float32 weight by smaller tensors and nodes that convert them to float32.

    `smaller` returns these for one weight, or None to keep it. Raises ExportError if no
    weight is replaced.
    """
    kept: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    used = {name for node in model.graph.node for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name not in used:  # such as a bias before its correction
            continue
        big = len(tensor.dims) > 1 and np.prod(tensor.dims) >= _STORED_VALUES
        stored = None
        if big and tensor.data_type == onnx.TensorProto.FLOAT:
            stored = smaller(tensor.name, numpy_helper.to_array(tensor))
        if stored is None:
            kept.append(tensor)
        else:
            kept += stored[0]
            nodes += stored[1]
    if not nodes:
        raise ExportError(
            f"the graph has no large float32 weights to store in {precision}; export it in fp32"
        )
    nodes += model.graph.node
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)


def _as_fp16(name: str, weights: F32) -> _Stored:
    largest = float(np.abs(weights).max())
    if not largest <= _FP16_MAX:
        raise ExportError(
            f"the weights {name} reach {largest:.3g}, more than float16's largest number "
            f"{_FP16_MAX:.0f}; export in fp32 or int8-weights"
        )
    half = numpy_helper.from_array(weights.astype(np.float16), f"{name}.fp16")
    widen = helper.make_node("Cast", [half.name], [name], to=onnx.TensorProto.FLOAT)
    return [half], [widen]


def _as_int8(name: str, weights: F32) -> _Stored | None:
    blocks = _blocks(weights)
    if blocks is None:
        return None
    values, scales = blocks
    tensors = [
        numpy_helper.from_array(values, f"{name}.int8"),
        numpy_helper.from_array(scales, f"{name}.scale"),
        numpy_helper.from_array(np.array(weights.shape, np.int64), f"{name}.shape"),
    ]
    nodes = [
        helper.make_node("Cast", [f"{name}.int8"], [f"{name}.cast"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}.cast", f"{name}.scale"], [f"{name}.blocks"]),
        helper.make_node("Reshape", [f"{name}.blocks", f"{name}.shape"], [name]),
    ]
    return tensors, nodes


def _blocks(weights: F32) -> tuple[Array, F32] | None:
    """Weights as int8 (n, BLOCK) with a float32 scale for each row (n, 1).

    None if the number of values of a channel is not a multiple of BLOCK. This keeps depthwise
    kernels in fp32, which are small and differ between neighbouring channels.
    """
    if weights[0].size % BLOCK:
        return None
    rows = weights.reshape(-1, BLOCK)  # (n, BLOCK)
    scales = (np.abs(rows).max(axis=1, keepdims=True) / 127).astype(np.float32)  # (n, 1)
    scales[scales == 0] = 1
    return np.round(rows / scales).astype(np.int8), scales


def _after_int8_storage(weights: F32) -> F32:
    blocks = _blocks(weights)
    if blocks is None or weights.size < _STORED_VALUES:
        return weights
    values, scales = blocks
    return (values * scales).reshape(weights.shape)
