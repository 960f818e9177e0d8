"""The exported graph: raw features, any batch, no paths inside.

That another process writes the same bytes is shown by test_cli_export.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from fedclip_edge.config import EncoderConfig
from fedclip_edge.errors import ExportError
from fedclip_edge.exporting.golden import noise_pixels
from fedclip_edge.exporting.image_tower import export_image_tower, strip
from fedclip_edge.exporting.open_clip_model import load_open_clip
from fedclip_edge.exporting.parity import check_parity
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.encoder import open_encoder, open_onnx

MakeClip = Callable[[Path, Mapping[str, Any]], Path]


def test_input_and_output_are_those_of_a_bundle(clip_bundle: Bundle) -> None:
    model = onnx.load(clip_bundle.encoder_path)
    (taken,), (given,) = model.graph.input, model.graph.output
    shapes = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (taken, given)
    ]
    assert (taken.name, given.name) == ("pixel_values", "image_features")
    assert shapes == [["batch", 3, 64, 64], ["batch", 128]]
    assert [(o.domain, o.version) for o in model.opset_import if not o.domain] == [("", 18)]
    assert clip_bundle.manifest.opset == 18


def test_features_are_raw_and_do_not_depend_on_the_batch(
    clip_bundle: Bundle, clip_folder: Path
) -> None:
    encoder = open_encoder(clip_bundle, EncoderConfig())
    pixels = noise_pixels(9, clip_bundle.manifest.preprocessing, seed=3)
    features = encoder.embed(pixels)
    with torch.no_grad():
        theirs = load_open_clip(f"local-dir:{clip_folder}").image_tower(torch.from_numpy(pixels))
    np.testing.assert_allclose(features, theirs.numpy(), atol=1e-5, rtol=1e-4)
    assert np.abs(np.linalg.norm(features, axis=1) - 1).min() > 0.01
    for i in range(9):
        np.testing.assert_array_equal(encoder.embed(pixels[i : i + 1])[0], features[i])


def test_no_path_and_no_note_travels(clip_bundle: Bundle) -> None:
    data = clip_bundle.encoder_path.read_bytes()
    model = onnx.load_model_from_string(data)
    for tensor in model.graph.initializer:
        tensor.raw_data = b""
    rest = model.SerializeToString()
    assert not re.search(rb"\.py|/home|/root|site-packages|/tmp", rest)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert len(data) < 1.1 * sum(4 * int(np.prod(t.dims)) for t in model.graph.initializer)


def test_a_vision_transformer_exports_too(tmp_path: Path, make_clip: MakeClip) -> None:
    vision = {"layers": 2, "width": 64, "head_width": 32, "image_size": 32, "patch_size": 8}
    folder = make_clip(tmp_path / "vit", {"vision_cfg": vision, "quick_gelu": True})
    model = load_open_clip(f"local-dir:{folder}")
    assert model.activation == "quick_gelu"
    fused = torch.backends.mha.get_fastpath_enabled()
    exported = export_image_tower(model.image_tower, 32)
    assert torch.backends.mha.get_fastpath_enabled() == fused
    encoder = open_onnx(exported, EncoderConfig(), image_size=32, dim=128)
    report = check_parity(encoder, model.image_tower, model.preprocessing)
    assert float(report["worst_relative"]) < 1e-5


def test_a_tower_that_cannot_be_exported() -> None:
    class Unexportable(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.sum() if pixels.numpy().sum() > 0 else pixels.mean()

    with pytest.raises(ExportError, match="the image tower cannot be exported: "):
        export_image_tower(Unexportable(), 8)


def test_strip_reaches_graphs_inside_nodes() -> None:
    inner = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], doc_string="/a")], "g", [], []
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner, alpha=1.0)
    node.metadata_props.add(key="namespace", value="/home/somebody")
    model = helper.make_model(helper.make_graph([node], "outer", [], []), doc_string="/b")
    model.metadata_props.add(key="path", value="/c")
    stripped = strip(model).SerializeToString()
    assert b"/" not in stripped
    assert b"Relu" in stripped
