"""Opset, checks and serialisation of all ONNX files that this package writes; needs no torch.

Law: the same weights give the same bytes in every process and every folder, because the file's
SHA-256 is part of the feature key.
"""

from __future__ import annotations

import math
from typing import Any

import onnx
from onnx import helper

from fedclip_edge.errors import ExportError

OPSET = 18  # from 17 on LayerNormalization is one operator; TensorRT 10 reads 18
_LIMIT_BYTES = 2**31 - 2**24  # protobuf allows 2 GiB; 16 MiB are left for nodes and names
_SMALL_BYTES = 1024  # enough for shapes and axes, whose values the checker needs


def serialise(model: onnx.ModelProto) -> bytes:
    """Bytes of the file, including its weights; raises ExportError if they exceed 2 GB."""
    size = sum(map(_tensor_bytes, model.graph.initializer))
    if size > _LIMIT_BYTES:
        raise ExportError(
            f"the image encoder's weights take {size / 1e9:.1f} GB, but an ONNX file is limited to "
            "2 GB: export with --precision fp16 or int8-weights"
        )
    return bytes(model.SerializeToString(deterministic=True))


def check(model: onnx.ModelProto) -> None:
    """Check the graph and its shapes with onnx's checker, whose exceptions pass through.

    The values of large weights are not checked.
    """
    onnx.checker.check_model(_without_weights(model), full_check=True)


def opset_of(model: onnx.ModelProto) -> int:
    """Version of ONNX's own operator set; 0 if the file names none."""
    own = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return int(max(own, default=0))


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove doc strings, metadata and shapes of intermediate tensors, in place; returns `model`.

    They do not affect the results, but contain paths and vary between runs.
    """
    model.doc_string = ""
    del model.metadata_props[:]
    _strip_graph(model.graph)
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        _strip_nodes(function.node)
    return model


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]  # shapes inside the graph, which a runtime infers
    for values in (graph.input, graph.output, graph.initializer):
        for value in values:
            value.doc_string = ""
            del value.metadata_props[:]
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Any) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            if attribute.type == onnx.AttributeProto.GRAPH:
                _strip_graph(attribute.g)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model whose large weights are inputs instead.

    The checker copies the model several times.
    """
    large = [tensor for tensor in model.graph.initializer if _tensor_bytes(tensor) > _SMALL_BYTES]
    names = {tensor.name for tensor in large}
    graph = helper.make_graph(
        model.graph.node,
        model.graph.name,
        [
            *model.graph.input,
            *(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in large),
        ],
        model.graph.output,
        [tensor for tensor in model.graph.initializer if tensor.name not in names],
    )
    return helper.make_model(
        graph,
        functions=model.functions,
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(math.prod(tensor.dims) * kind.itemsize)
