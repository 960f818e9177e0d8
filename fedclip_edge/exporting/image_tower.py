"""Export of the image tower of a PyTorch CLIP to an ONNX graph.

Laws:

- The features are raw, because the FedCLIP gate works on raw features.
- The batch size is dynamic.
"""

from __future__ import annotations

import onnx
import torch
from onnx import helper

from fedclip_edge.errors import ExportError, reason_of
from fedclip_edge.exporting.onnx_file import OPSET, check
from fedclip_edge.exporting.torch_export import export_module
from fedclip_edge.exporting.vit_graph import write_vit_graph
from fedclip_edge.exporting.vit_structure import supports

INPUT, OUTPUT = "pixel_values", "image_features"
_IR = 10  # the IR version that PyTorch writes with this opset


def export_image_tower(tower: torch.nn.Module, image_size: int) -> onnx.ModelProto:
    """Graph from `pixel_values` float32 (N, 3, S, S) to `image_features` float32 (N, D).

    open_clip's VisionTransformer becomes the graph of vit_graph.py, which computes less than
    PyTorch's. Every other tower, and every variant that vit_structure.py does not support, is
    exported by PyTorch. `image_size` is S. `tower` is put in evaluation mode. Raises ExportError if
    PyTorch cannot export the tower or the graph is not valid ONNX.
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
    except Exception as error:  # the exporter can raise any exception
        raise ExportError(f"the image tower cannot be exported: {reason_of(error)}") from error
    return model


def export_by_pytorch(tower: torch.nn.Module, image_size: int) -> onnx.ModelProto:
    """Graph with the same input and output, made by PyTorch's exporter.

    The exporter's own exceptions pass through.
    """
    return export_module(tower, torch.zeros(2, 3, image_size, image_size), INPUT, OUTPUT)


def _reparameterised(tower: torch.nn.Module) -> torch.nn.Module:
    """A copy in which timm's parallel branches are folded into one convolution.

    A tower without such branches is returned unchanged.
    """
    foldable = ("fuse", "reparameterize", "switch_to_deploy")
    if not any(hasattr(module, name) for module in tower.modules() for name in foldable):
        return tower
    from timm.utils.model import reparameterize_model

    folded: torch.nn.Module = reparameterize_model(tower, inplace=False)
    return folded
