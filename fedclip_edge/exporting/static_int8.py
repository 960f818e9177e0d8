"""Static int8 in the QDQ form: unsigned 8-bit activations, signed 8-bit weights per channel.

QDQ means that QuantizeLinear and DequantizeLinear nodes in the graph mark the quantised tensors; a
runtime replaces them by integer kernels.

Convolutions and matrix products with constant weights are quantised, and so are sums between
convolutions. Products of two activations (attention), norms and softmax stay in fp32. The
convolution that reads the pixels stays in fp32 too, because it is little work and its errors reach
all later layers (MobileNetV2's smallest centred cosine is 0.91 if it is quantised, 0.98 if not).
The range of an activation is from the smallest to the largest value on the calibration pictures:
percentiles, the mean of the pictures' extremes, and the least squared error were no better.

Laws:

- The features do not depend on the rest of the batch, because every range is a constant.
- The features do not depend on the box. An x86 CPU without VNNI adds pairs of 8-bit products in
  16 bits, where the sum can saturate. With weights over the full 8-bit range, it would give
  different and much worse features (a centred cosine of 0.75 for ViT-B-32). The scale of a channel
  is therefore the smallest with which no neighbouring pair of weights can saturate. This costs half
  a bit in a few channels. The usual remedy, 7-bit weights, costs one bit in all of them
  (MobileNetV2: 0.94 instead of 0.98).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fedclip_edge.errors import ExportError
from fedclip_edge.exporting.layers import (
    Array,
    Layer,
    Seen,
    constants,
    consumers,
    correct_bias,
    observe,
    weighted_layers,
)
from fedclip_edge.exporting.onnx_file import opset_of
from fedclip_edge.records import F32

_OPSET = 13  # the first whose DequantizeLinear takes a scale per channel
_LEVELS = 255  # steps of uint8
# Largest sum of two neighbouring weights a and b, in steps: 255 (a + b) must not exceed 32767, and
# rounding adds up to half a step to each.
_PAIR = 32767 / 255 - 1
_INT32_ROOM = 2**30  # largest bias; the other half of int32 is for the sum of the products


def quantise(model: onnx.ModelProto, calibration: Sequence[F32]) -> None:
    """Change an fp32 graph to int8 in place.

    `calibration` are batches of pixels float32 (N, 3, S, S) with at least one picture. Raises
    ExportError if the graph's opset is older than 13, if nothing in it can be quantised, or if it
    cannot be run on the pictures or has NaN or infinity as an intermediate value.
    """
    opset = opset_of(model)
    if opset < _OPSET:
        raise ExportError(
            f"int8 needs opset {_OPSET} or newer, but the graph has opset {opset}; export it again "
            "with a newer opset"
        )
    entering = {value.name for value in model.graph.input}
    layers = [
        layer
        for layer in weighted_layers(model)
        if layer.node.op_type != "Conv" or layer.input not in entering
    ]
    if not layers:
        raise ExportError(
            "int8: the graph has no convolution or matrix product with constant weights; export it "
            "in fp32"
        )
    integer, bends = _integer_outputs(model, layers)
    names = dict.fromkeys([*(layer.input for layer in layers), *integer])
    seen = observe(model, layers, calibration, integer)
    ranges = {name: _range(seen[name]) for name in names}
    scales = []
    for layer in layers:
        scale = _weight_scales(layer)  # (output channels,)
        rounded = np.round(layer.weights / layer.per_channel(scale)) * layer.per_channel(scale)
        correct_bias(model, layer, rounded.astype(np.float32), seen[layer.input])
        scales.append(scale)
    _fold(model, bends)
    _insert(model, layers, scales, ranges, integer)


def _integer_outputs(
    model: onnx.ModelProto, layers: Sequence[Layer]
) -> tuple[list[str], list[tuple[onnx.NodeProto, onnx.NodeProto]]]:
    """Names of tensors to quantise as outputs, and (producer, Relu or Clip) pairs to fold.

    ONNX Runtime convolves in integers only if the output is quantised. The output of a matrix
    product stays in floats, which is as fast and more exact.
    """
    convolutions = {layer.node.output[0] for layer in layers if layer.node.op_type == "Conv"}
    readers, weights = consumers(model), constants(model)
    outputs = {value.name for value in model.graph.output}
    integer: list[str] = []
    bends = []
    for node in model.graph.node:
        summed = node.op_type == "Add" and all(name in integer for name in node.input)
        name = node.output[0]
        if name in outputs or not (summed or name in convolutions):
            continue
        following = readers.get(name, [])
        bend = following[0] if len(following) == 1 else None
        if bend is not None and _bends(bend, weights) and bend.output[0] not in outputs:
            bends.append((node, bend))
            name = bend.output[0]
        integer.append(name)
    return integer, bends


def _bends(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    """True for a Relu or Clip that has no effect after its output is quantised to its range."""
    if node.op_type == "Relu":
        return True
    if node.op_type != "Clip" or len(node.input) != 3 or not set(node.input[1:]) <= set(weights):
        return False
    low, high = (numpy_helper.to_array(weights[name]).item() for name in node.input[1:])
    return bool(low <= 0 <= high)  # a quantised range includes 0, so the bounds must too


def _fold(model: onnx.ModelProto, bends: Sequence[tuple[onnx.NodeProto, onnx.NodeProto]]) -> None:
    """Remove each Relu or Clip; its producer then writes its output."""
    for producer, bend in bends:
        producer.output[0] = bend.output[0]
        model.graph.node.remove(bend)


def _range(seen: Seen) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of a tensor's uint8 form.

    0 is represented exactly, because padding and Relu produce zeros.
    """
    if not math.isfinite(seen.high - seen.low):
        raise ExportError(
            "the graph computes NaN or infinity from the calibration pictures; export it in fp32"
        )
    scale = np.float32((seen.high - seen.low) / _LEVELS) or np.float32(1)
    return scale, np.uint8(np.clip(round(-seen.low / float(scale)), 0, _LEVELS))


def _weight_scales(layer: Layer) -> F32:
    """Scale of each output channel (output channels,), with which no pair of weights saturates."""
    rows = layer.rows()  # (output channels, K)
    largest = np.abs(rows).max(axis=1)  # (output channels,)
    scales = largest / 127
    if rows.shape[1] > 1 and not _depthwise(layer):
        even = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
        pairs = even.reshape(len(even), -1, 2)  # (output channels, K / 2, 2)
        ups = np.clip(pairs, 0, None).sum(axis=2).max(axis=1)
        downs = np.clip(-pairs, 0, None).sum(axis=2).max(axis=1)
        scales = np.maximum(scales, np.maximum(ups, downs) / _PAIR)
    return np.where(largest > 0, scales, 1).astype(np.float32)


def _depthwise(layer: Layer) -> bool:
    """True for a depthwise convolution, whose kernels multiply in 32 bits without saturation."""
    return layer.groups > 1 and layer.weights.shape[1] == 1


def _insert(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    scales: Sequence[F32],
    ranges: dict[str, tuple[np.float32, np.uint8]],
    integer: Sequence[str],
) -> None:
    """Write the QDQ form: every quantised tensor and weight passes through a DequantizeLinear."""
    graph, known = model.graph, constants(model)
    by_output = {
        layer.node.output[0]: (layer, scale) for layer, scale in zip(layers, scales, strict=True)
    }
    tensors: dict[str, Array] = {}
    nodes: list[onnx.NodeProto] = []

    def dequantised(name: str, values: Array, scale: Array, axis: int) -> str:
        parts = [f"{name}.int", f"{name}.scale", f"{name}.zero"]
        tensors.update(
            zip(parts, (values, scale, np.zeros(scale.shape, values.dtype)), strict=True)
        )
        nodes.append(helper.make_node("DequantizeLinear", parts, [f"{name}.float"], axis=axis))
        return f"{name}.float"

    def quantised(name: str) -> None:
        scale, zero = ranges[name]
        tensors.update({f"{name}.scale": np.asarray(scale), f"{name}.zero": np.asarray(zero)})
        how = [f"{name}.scale", f"{name}.zero"]
        nodes.append(helper.make_node("QuantizeLinear", [name, *how], [f"{name}.uint8"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.uint8", *how], [f"{name}.dq"]))

    for value in graph.input:
        if value.name in ranges:
            quantised(value.name)
    inner = set(integer)  # if one node read the float tensor, its producer would run in float
    for node in list(graph.node):
        for place, name in enumerate(node.input):
            if name in inner:
                node.input[place] = f"{name}.dq"
        if node.output[0] in by_output:
            layer, scale = by_output[node.output[0]]
            name = node.output[0]
            entering = (
                node.input[0].removesuffix(".dq") if node.input[0] not in ranges else node.input[0]
            )
            node.input[0] = f"{entering}.dq"
            step = float(ranges[entering][0])
            bias = None
            if len(node.input) > 2:
                bias = numpy_helper.to_array(known[node.input[2]]).reshape(-1).astype(np.float64)
                # With weights near 0, the scale would be so small that the bias overflows int32.
                scale = np.maximum(scale, np.abs(bias) / step / _INT32_ROOM).astype(np.float32)
            weights = np.round(layer.weights / layer.per_channel(scale)).astype(np.int8)
            node.input[1] = dequantised(f"{name}.weight", weights, scale, layer.axis)
            if bias is not None:
                steps = (scale * np.float32(step)).astype(np.float32)
                whole = np.round(bias / steps).astype(np.int32)
                node.input[2] = dequantised(f"{name}.bias", whole, steps, 0)
        nodes.append(node)
        for name in node.output:
            if name in ranges:
                quantised(name)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    kept += [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
