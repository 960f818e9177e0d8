"""ONNX graph of open_clip's VisionTransformer that computes only what the feature needs.

The feature comes only from the class token. In the last block, every other token is therefore
needed only up to the norm before attention: neither its query nor its MLP is used. With a single
query, the keys and values need not be computed either, because

    q . (K x) = (q K) . x        and        sum_i a_i (V x_i) = V (sum_i a_i x_i).

For ViT-B-32 this saves 8 % of all multiplications. The other changes concern layout. The patch
convolution, whose patches do not overlap, is one matrix product. Keys have no bias, because it
adds the same number to all scores of a query, which does not change the softmax. Scales are
multiplied into weights.

Axes: B pictures (n is the number of patches along a side), L tokens, W width of the tower, H
heads, D feature width.

Laws:

- The graph computes the same function as the module, up to rounding, for every tower for which
  `supports` (vit_structure.py) returns True.
- Weights are combined element by element when they are written, never summed over an axis, so
  that every machine writes the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fedclip_edge.exporting.vit_structure import is_exactly, patches
from fedclip_edge.records import F32


def write_vit_graph(
    proto: onnx.GraphProto, tower: nn.Module, image_size: int, input_name: str, output_name: str
) -> None:
    """Write the graph of `tower` into the empty `proto`, with operators of opset 18.

    The input `input_name` takes pixels float32 (B, 3, S, S), where S is `image_size`; the output
    `output_name` gives raw features float32 (B, D). The caller must check `tower` with `supports`,
    because this function does not. `proto` is written in place, because protobuf copies every
    message that is put into another.
    """
    vit: Any = tower
    graph = _Graph(proto)
    x = _embed(graph, vit, image_size, input_name)  # (L, B, W)
    *blocks, last = vit.transformer.resblocks
    for i, block in enumerate(blocks):
        x = _block(graph, block, x, f"block{i}")  # (L, B, W)
    x = _last_block(graph, last, x, f"block{len(blocks)}")  # (B, W)
    x = graph.norm(vit.ln_post, x, "ln_post")
    dim = vit.conv1.out_channels
    if vit.proj is not None:
        x = graph.op("MatMul", x, graph.constant(_array(vit.proj), "proj"))  # (B, D)
        dim = vit.proj.shape[1]
    proto.name = "image_tower"
    proto.node[-1].output[0] = output_name
    pixels: list[str | int | None] = ["batch", 3, image_size, image_size]
    taken = helper.make_tensor_value_info(input_name, TensorProto.FLOAT, pixels)
    given = helper.make_tensor_value_info(output_name, TensorProto.FLOAT, ["batch", dim])
    proto.input.append(taken)
    proto.output.append(given)


def _array(tensor: torch.Tensor) -> F32:
    return np.asarray(tensor.detach().numpy(), np.float32)


@dataclass(frozen=True)
class _Graph:
    """Writer of nodes and initialisers; a value is named after its operator or its weight."""

    proto: onnx.GraphProto
    shared: set[str] = field(default_factory=set)  # names of constants that several nodes read

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.proto.node)}"
        self.proto.node.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, values: np.ndarray, name: str) -> str:
        self.proto.initializer.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def common(self, values: np.ndarray, name: str) -> str:
        if name not in self.shared:
            self.shared.add(self.constant(values, name))
        return name

    def ints(self, *values: int) -> str:
        name = "ints_" + "_".join(map(str, values)).replace("-", "minus")
        return self.common(np.array(values, np.int64), name)

    def number(self, value: float) -> str:
        return self.common(np.array(value, np.float32), f"number_{value:.4f}")

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.ints(*shape))  # 0 keeps the first dimension

    def norm(self, norm: nn.LayerNorm, x: str, name: str) -> str:
        weight = self.constant(_array(norm.weight), f"{name}.weight")
        bias = self.constant(_array(norm.bias), f"{name}.bias")
        return self.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)

    def linear(self, x: str, weight: F32, bias: F32 | None, name: str) -> str:
        """The product x W^T + b with W (outputs, inputs), as PyTorch stores it."""
        x = self.op("MatMul", x, self.constant(weight.T, f"{name}.weight"))
        return x if bias is None else self.op("Add", x, self.constant(bias, f"{name}.bias"))


def _embed(graph: _Graph, vit: Any, image_size: int, pixels: str) -> str:
    """Tokens (L, B, W), the class token first, of pixels (B, 3, S, S).

    The token axis comes before the pictures, because ONNX Runtime can then multiply heads without
    moving them.
    """
    side, count = vit.conv1.kernel_size[0], patches(vit, image_size)
    n = image_size // side
    x = graph.reshape(pixels, 0, 3, n, side, n, side)
    x = graph.op("Transpose", x, perm=[2, 4, 0, 1, 3, 5])  # (n, n, B, 3, side, side)
    x = graph.reshape(x, count, -1, 3 * side**2)
    kernels = _array(vit.conv1.weight).reshape(-1, 3 * side**2)  # (W, 3 side side)
    x = graph.linear(x, kernels, None, "conv1")  # (L - 1, B, W)
    # Adds a row of zeros in front; its position embedding, added below, includes the class token.
    x = graph.op("Pad", x, graph.ints(1, 0, 0, 0, 0, 0))  # (L, B, W)
    positions = _array(vit.positional_embedding).copy()
    positions[0] += _array(vit.class_embedding)
    x = graph.op("Add", x, graph.constant(positions[:, None], "positions"))
    return x if isinstance(vit.ln_pre, nn.Identity) else graph.norm(vit.ln_pre, x, "ln_pre")


def _block(graph: _Graph, block: Any, x: str, name: str) -> str:
    """Tokens (L, B, W) after one block, from tokens (L, B, W)."""
    heads, size = block.attn.num_heads, block.attn.head_dim
    (q, k, v), (q_bias, _, v_bias) = _projections(block.attn)
    y = graph.norm(block.ln_1, x, f"{name}.ln_1")

    def split(weight: F32, bias: F32 | None, part: str, perm: list[int]) -> str:
        projected = graph.linear(y, weight, bias, f"{name}.{part}")  # (L, B, W)
        return graph.op("Transpose", graph.reshape(projected, 0, -1, heads, size), perm=perm)

    queries = split(q, q_bias, "q", [1, 2, 0, 3])  # (B, H, L, W / H)
    keys = split(k, None, "k", [1, 2, 3, 0])  # (B, H, W / H, L)
    values = split(v, v_bias, "v", [1, 2, 0, 3])  # (B, H, L, W / H)
    weights = graph.op("Softmax", graph.op("MatMul", queries, keys), axis=-1)  # (B, H, L, L)
    y = graph.op("MatMul", weights, values)  # (B, H, L, W / H)
    y = graph.op("Transpose", y, perm=[2, 0, 1, 3])  # (L, B, H, W / H)
    return _after_attention(graph, block, x, graph.reshape(y, 0, -1, heads * size), name)


def _last_block(graph: _Graph, block: Any, x: str, name: str) -> str:
    """Class token (B, W) after the last block, from tokens (L, B, W)."""
    heads, size = block.attn.num_heads, block.attn.head_dim
    width = heads * size
    (q, k, v), (q_bias, _, v_bias) = _projections(block.attn)
    y = graph.norm(block.ln_1, x, f"{name}.ln_1")  # (L, B, W)
    query = graph.linear(_class_token(graph, y), q, q_bias, f"{name}.q")  # (B, W)
    y = graph.op("Transpose", y, perm=[1, 0, 2])  # (B, L, W)
    # A feature must not depend on the rest of its batch, and ONNX Runtime's order of summation
    # depends on shapes. So the shapes of these products do not depend on the batch size or on the
    # number of threads: one row for each picture and head, or more rows than columns.
    query = graph.reshape(query, 0, heads, 1, size)  # (B, H, 1, W / H)
    by_head = graph.constant(k.reshape(heads, size, width), f"{name}.k.weight")
    query = graph.reshape(graph.op("MatMul", query, by_head), 0, heads, width)  # (B, H, W)
    scores = graph.op("MatMul", y, graph.op("Transpose", query, perm=[0, 2, 1]))  # (B, L, H)
    scores = graph.op("Transpose", scores, perm=[0, 2, 1])  # (B, H, L)
    mean = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), y)  # (B, H, W)
    by_head = graph.constant(
        v.reshape(heads, size, width).transpose(0, 2, 1), f"{name}.v.weight"
    )  # (H, W, W / H)
    y = graph.op("MatMul", graph.reshape(mean, 0, heads, 1, width), by_head)  # (B, H, 1, W / H)
    y = graph.op("Add", graph.reshape(y, 0, width), graph.constant(v_bias, f"{name}.v.bias"))
    return _after_attention(graph, block, _class_token(graph, x), y, name)


def _class_token(graph: _Graph, x: str) -> str:
    """Class token (B, W) of tokens (L, B, W)."""
    return graph.op("Gather", x, graph.common(np.array(0, np.int64), "first"), axis=0)


def _after_attention(graph: _Graph, block: Any, x: str, y: str, name: str) -> str:
    """Output projection and MLP, each with its residual sum, for any leading dimensions.

    `x` is the block's input, `y` the output of its attention, both (..., W).
    """
    parts = (
        (block.attn.out_proj, block.ls_1),
        (block.mlp.c_fc, None),
        (block.mlp.c_proj, block.ls_2),
    )
    out, up, down = (_scaled(linear, scale) for linear, scale in parts)
    x = graph.op("Add", x, graph.linear(y, *out, f"{name}.out_proj"))
    y = graph.norm(block.ln_2, x, f"{name}.ln_2")
    y = _activate(graph, block.mlp.gelu, graph.linear(y, *up, f"{name}.c_fc"))
    return graph.op("Add", x, graph.linear(y, *down, f"{name}.c_proj"))


def _projections(attention: nn.MultiheadAttention) -> tuple[tuple[F32, ...], tuple[F32, ...]]:
    """Weights (W, W) and biases (W,) of queries, keys and values.

    Those of the queries include the scale of the scores.
    """
    q, k, v = np.split(_array(attention.in_proj_weight), 3)
    q_bias, k_bias, v_bias = np.split(_array(attention.in_proj_bias), 3)
    scale = np.float32(1 / math.sqrt(attention.head_dim))
    return (q * scale, k, v), (q_bias * scale, k_bias, v_bias)


def _scaled(linear: nn.Linear, layer_scale: Any) -> tuple[F32, F32]:
    """Weight (outputs, inputs) and bias (outputs,), multiplied by the layer scale if any."""
    weight, bias = _array(linear.weight), _array(linear.bias)
    if layer_scale is None or isinstance(layer_scale, nn.Identity):
        return weight, bias
    gamma = _array(layer_scale.gamma)
    return gamma[:, None] * weight, gamma * bias


def _activate(graph: _Graph, activation: nn.Module, x: str) -> str:
    """QuickGELU or GELU, each in the form that ONNX Runtime fuses to one operator."""
    if is_exactly(activation, "QuickGELU"):
        sigmoid = graph.op("Sigmoid", graph.op("Mul", x, graph.number(1.702)))
        return graph.op("Mul", x, sigmoid)
    error = graph.op("Erf", graph.op("Div", x, graph.number(math.sqrt(2))))
    doubled = graph.op("Mul", x, graph.op("Add", error, graph.number(1)))
    return graph.op("Mul", doubled, graph.number(0.5))
