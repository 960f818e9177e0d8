"""One ONNX graph from pixels through the encoder to the probabilities and scores of the head.

The graph runs the steps of `vision.pictures.normalise`, the unchanged encoder, the `logits`
function of the model's method (exported by torch), and the softmax, in this order. Scores are
those of learning/unknown.py.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, compose, helper, numpy_helper, version_converter
from torch import Tensor

from fedclip_edge.errors import ExportError, reason_of
from fedclip_edge.exporting.onnx_file import OPSET, opset_of, strip
from fedclip_edge.exporting.torch_export import export_module
from fedclip_edge.learning import gate, methods, unknown
from fedclip_edge.learning.operations import cosine_logits
from fedclip_edge.learning.torch_operations import TORCH
from fedclip_edge.records import ClassTexts, Model
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.pictures import Preprocessing

INPUT, OUTPUT = "pixels", "probabilities"
SCORE, UNKNOWN = "score", "unknown"

_FEATURES = "image_features"


def outputs_of(model: Model) -> tuple[str, ...]:
    """Names of the graph's outputs, in their order."""
    return (OUTPUT, SCORE, UNKNOWN) if unknown.rule_of(model.parameters).applies else (OUTPUT,)


def fuse(bundle: Bundle, ends: tuple[str, str], model: Model) -> onnx.ModelProto:
    """Graph from `pixels` uint8 (N, S, S, 3) to `probabilities` float32 (N, C).

    With a model that has a threshold, the graph has two more outputs: `score` float32 (N,), and
    `unknown` bool (N,), which is true if the score is below the threshold.

    `ends` are the names of the encoder's input and output. The opset is the encoder's, or OPSET if
    the encoder's is older. Raises ExportError if the bundle's file cannot be read, or if encoder
    and head cannot be converted to the same opset.
    """
    # Merged by hand, because onnx.compose copies the encoder's weights several times.
    try:
        whole = strip(onnx.load(bundle.encoder_path))
        opset = max(opset_of(whole), OPSET)
        whole = compose.add_prefix(_at_opset(whole, opset), "encoder/", inplace=True)
        head = _at_opset(_head(model, bundle.classes), opset)
    except Exception as error:  # onnx's and torch's errors share no base but Exception
        raise _cannot_join(bundle, error) from error
    graph = whole.graph
    pixels = pixels_graph(bundle.manifest.preprocessing, f"encoder/{ends[0]}")
    renamed = {f"head/{_FEATURES}": f"encoder/{ends[1]}"}
    renamed |= {f"head/{name}": name for name in outputs_of(model)}
    for node in head.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    nodes = [*pixels.node, *graph.node, *head.graph.node]
    for one in head.graph.output:
        one.name = renamed[one.name]
    for field, values in (
        (graph.node, nodes),
        (graph.input, list(pixels.input)),  # without the weights, which IR 3 lists as inputs
        (graph.output, list(head.graph.output)),
    ):
        del field[:]
        field.extend(values)
    graph.initializer.extend([*pixels.initializer, *head.graph.initializer])
    graph.name = "classifier"
    # The oldest version that both parts allow, because an old runtime refuses newer ones.
    whole.ir_version = max(whole.ir_version, head.ir_version)
    return whole


def _cannot_join(bundle: Bundle, error: Exception) -> ExportError:
    return ExportError(
        f"{bundle.encoder_path} cannot be joined with the classifier's head ({reason_of(error)}); "
        f"nothing was written. Export the encoder again with opset {OPSET}"
    )


def pixels_graph(preprocessing: Preprocessing, output: str) -> onnx.GraphProto:
    """`normalise` as a graph that is valid in any opset and gives the same bits in ONNX Runtime.

    Its input is `pixels` uint8 (N, S, S, 3), its output is named `output`, float32 (N, 3, S, S).
    """
    size = preprocessing.image_size
    constants = {"255": 255, "mean": preprocessing.mean, "std": preprocessing.std}
    return helper.make_graph(
        [
            helper.make_node("Cast", [INPUT], ["pixels/float"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["pixels/float", "pixels/255"], ["pixels/scaled"]),
            helper.make_node("Sub", ["pixels/scaled", "pixels/mean"], ["pixels/centred"]),
            helper.make_node("Div", ["pixels/centred", "pixels/std"], ["pixels/normal"]),
            helper.make_node("Transpose", ["pixels/normal"], [output], perm=[0, 3, 1, 2]),
        ],
        "pixels",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", 3, size, size])],
        [
            numpy_helper.from_array(np.asarray(value, np.float32), f"pixels/{name}")
            for name, value in constants.items()
        ],
    )


class _Head(torch.nn.Module):
    """Probabilities (N, C) and scores (N,) of raw features (N, D), as `classify` gives them."""

    def __init__(self, model: Model, classes: ClassTexts) -> None:
        super().__init__()
        self._logits = methods.logits_of(model)
        self._shared = methods.logits_of(gate.shared_of(model))
        self._names = {f"term_{i}": name for i, name in enumerate(model.parameters)}
        for own, name in self._names.items():
            self.register_buffer(own, torch.tensor(model.parameters[name]))
        self.register_buffer("texts", torch.tensor(classes.vectors))
        self._scale = classes.logit_scale
        self._rule = unknown.rule_of(model.parameters)

    def forward(self, features: Tensor) -> Tensor | tuple[Tensor, ...]:
        terms = {name: cast("Tensor", getattr(self, own)) for own, name in self._names.items()}
        texts = cast("Tensor", self.texts)
        logits = self._logits(TORCH, terms, features, texts, self._scale)  # (N, C)
        if not self._rule.applies:
            return torch.softmax(logits, dim=1)
        zero_shot = cosine_logits(TORCH, features, texts, self._scale)  # (N, C)
        shared = self._shared(TORCH, gate.shared_terms(terms), features, texts, self._scale)
        score = unknown.score(TORCH, shared, zero_shot, self._scale, self._rule.gain)
        return torch.softmax(logits, dim=1), score, score < self._rule.threshold


def _head(model: Model, classes: ClassTexts) -> onnx.ModelProto:
    example = torch.ones(2, classes.vectors.shape[1])
    exported = export_module(_Head(model, classes), example, _FEATURES, *outputs_of(model))
    return compose.add_prefix(exported, "head/")


def _at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    if opset_of(model) == opset:
        return model
    return strip(version_converter.convert_version(model, opset))
