"""Export of a PyTorch module to ONNX by PyTorch's own exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch

from fedclip_edge.exporting.onnx_file import OPSET, strip


def export_module(
    module: torch.nn.Module, example: torch.Tensor, input_name: str, *output_names: str
) -> onnx.ModelProto:
    """Export `module` as a graph with one input; the first axis of every array is the batch.

    The batch size is dynamic, and the opset is OPSET. `example` (B, ...) is an input with B of two
    or more, because the exporter would treat a dimension of 1 as a constant. `module` is put in
    evaluation mode. The exporter's exceptions, of any type, pass through.
    """
    with _as_exporter_needs(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[input_name],
            output_names=list(output_names),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return strip(program.model_proto)


@contextlib.contextmanager
def _as_exporter_needs() -> Iterator[None]:
    """Turn off fused attention, which has no ONNX counterpart, and the exporter's messages."""
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
