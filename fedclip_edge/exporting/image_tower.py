"""The image tower of a PyTorch CLIP as an ONNX graph.

Laws: the features are raw, because the FedCLIP gate works on them; the batch is dynamic.
"""

from __future__ import annotations

import onnx
import torch
from onnx import helper

from fedclip_edge.errors import ExportError, first_line
from fedclip_edge.exporting.onnx_file import OPSET, check
from fedclip_edge.exporting.torch_export import export_module
from fedclip_edge.exporting.vit_graph import write_vit_graph
from fedclip_edge.exporting.vit_structure import supports

INPUT, OUTPUT = "pixel_values", "image_features"
_IR = 10  # what PyTorch writes with this opset


def export_image_tower(tower: torch.nn.Module, image_size: int) -> onnx.ModelProto:
    """A graph `pixel_values` f32 [batch, 3, S, S] -> `image_features` f32 [batch, D], in fp32.

    open_clip's VisionTransformer gets our own graph, which computes less than PyTorch's; every
    other tower, and every variant of that one which our graph does not know, goes through
    PyTorch's exporter. `tower` is put in evaluation mode. Raises ExportError where PyTorch cannot
    export it or the graph is not valid ONNX.
    """
    try:
        tower = tower.eval()
        if supports(tower, image_size):
            opset = helper.make_opsetid("", OPSET)
            model = onnx.ModelProto(ir_version=_IR, opset_import=[opset])
            write_vit_graph(model.graph, tower, image_size, INPUT, OUTPUT)
        else:
            model = export_by_pytorch(_reparameterised(tower), image_size)
        check(model)
    except Exception as error:  # whatever the exporter's passes raise
        raise ExportError(f"the image tower cannot be exported: {first_line(error)}") from error
    return model


def export_by_pytorch(tower: torch.nn.Module, image_size: int) -> onnx.ModelProto:
    """The same input and output, by PyTorch's exporter; raises whatever its passes raise."""
    return export_module(tower, torch.zeros(2, 3, image_size, image_size), INPUT, OUTPUT)


def _reparameterised(tower: torch.nn.Module) -> torch.nn.Module:
    """A copy with branches folded into one convolution where a tower of timm's has any."""
    foldable = ("fuse", "reparameterize", "switch_to_deploy")
    if not any(hasattr(module, name) for module in tower.modules() for name in foldable):
        return tower
    from timm.utils.model import reparameterize_model

    folded: torch.nn.Module = reparameterize_model(tower, inplace=False)
    return folded
