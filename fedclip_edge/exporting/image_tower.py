"""The image tower of a PyTorch CLIP as an ONNX file.

Laws: the features are raw, because the FedCLIP gate works on them; the batch is dynamic; the
same weights give the same bytes in every process and every folder, because the file's SHA-256
is part of the feature key.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch

from fedclip_edge.errors import ExportError

INPUT, OUTPUT = "pixel_values", "image_features"
OPSET = 18  # LayerNormalization is one operator from 17 on, and TensorRT 10 reads 18


def export_image_tower(tower: torch.nn.Module, image_size: int) -> bytes:
    """An ONNX file: `pixel_values` f32 [batch, 3, S, S] -> `image_features` f32 [batch, D].

    Raises ExportError where PyTorch cannot export the tower or the file is not valid ONNX.
    """
    # A batch of 2: a dimension of 1 would be taken for a constant.
    example = torch.zeros(2, 3, image_size, image_size)
    try:
        with _as_exporter_needs(), torch.no_grad():
            program = torch.onnx.export(
                tower.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
        if program is None:
            raise RuntimeError("torch.onnx.export gave no program")
        model = strip(program.model_proto)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # whatever the exporter's passes raise
        reason = str(error).strip().partition("\n")[0][:300]
        raise ExportError(f"the image tower cannot be exported: {reason}") from error
    return bytes(model.SerializeToString(deterministic=True))


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Takes out, in place, what does not compute: it holds paths and varies between runs."""
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
    del graph.value_info[:]  # shapes inside the graph; a runtime infers them
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


@contextlib.contextmanager
def _as_exporter_needs() -> Iterator[None]:
    """No fused attention, which has no ONNX counterpart, and none of the exporter's chatter."""
    fused = torch.backends.mha.get_fastpath_enabled()
    loud = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loud]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for logger in loud:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # deprecations between torch and onnxscript
            yield
    finally:
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fused)
