"""The exported graph of an image tower: raw features, any batch size, no local paths.

test_cli_export.py tests that another process writes the same bytes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import ExportError
from fedclip_edge.exporting.golden import noise_pixels
from fedclip_edge.exporting.image_tower import export_by_pytorch, export_image_tower
from fedclip_edge.exporting.onnx_file import OPSET, serialise, strip
from fedclip_edge.exporting.open_clip_model import load_open_clip
from fedclip_edge.exporting.recipe import Source
from fedclip_edge.exporting.torchvision_ops import declare_missing
from fedclip_edge.exporting.vit_structure import supports
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.encoder import open_encoder, open_onnx

declare_missing()
import open_clip  # noqa: E402

pytestmark = pytest.mark.one_python
SIDE = 64

_VIT = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16}

# Small towers of common model families; True if our own graph is used for them.
FAMILIES: dict[str, tuple[bool, dict[str, Any]]] = {
    "ViT": (True, _VIT),
    "CoCa": (
        False,
        {
            **_VIT,
            "attentional_pool": True,
            "attn_pooler_heads": 4,
        },
    ),
    "ResNet": (False, {"layers": [1, 1, 2, 1], "width": 16, "patch_size": None}),
    "MobileCLIP": (False, {"timm_model_name": "fastvit_t8", "timm_pool": "avg"}),
    "SigLIP": (
        False,
        {"timm_model_name": "test_vit2", "timm_pool": "map", "timm_proj": "none", "embed_dim": 64},
    ),
    "ConvNeXt": (False, {"timm_model_name": "test_convnext", "timm_pool": ""}),
}

# Every model in the documentation of the export; True if our own graph is used for it.
MODELS = {
    "ViT-B-32-quickgelu": True,
    "ViT-B-32": True,
    "ViT-B-16": True,
    "ViT-L-14": True,
    "RN50": False,
    "MobileCLIP-S1": False,
    "MobileCLIP-S2": False,
    "MobileCLIP2-S0": False,
    "ViT-B-16-SigLIP": False,
    "ViT-B-16-SigLIP2": False,
}


# One with our own graph, one exported by PyTorch: the small towers of FAMILIES are like all others.
IN_CI = ("ViT-B-32-quickgelu", "MobileCLIP2-S0")


def small_tower(settings: Mapping[str, Any]) -> torch.nn.Module:
    settings = {"image_size": SIDE, "timm_model_pretrained": False, **settings}
    dim = settings.pop("embed_dim", 32)
    torch.manual_seed(0)
    build = open_clip.model._build_vision_tower
    return perturbed(build(dim, open_clip.model.CLIPVisionCfg(**settings)))


def perturbed(tower: torch.nn.Module) -> torch.nn.Module:
    """Add noise to every parameter, because zeros and ones hide errors."""
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return tower.eval()


def largest_difference(file: bytes, tower: torch.nn.Module, side: int, batches: list[int]) -> float:
    """The largest difference on unit vectors; also checks that all batches give equal features."""
    encoder = open_onnx(file, EncoderConfig(threads=2), image_size=side)
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((max(batches), 3, side, side)).astype(np.float32)
    with torch.no_grad():
        theirs = tower(torch.from_numpy(pixels)).numpy()
    ours = encoder.embed(pixels)
    norms = np.linalg.norm(ours, axis=1, keepdims=True)
    for count in batches:
        assert np.abs(encoder.embed(pixels[:count]) - ours[:count]).max() < 1e-6 * norms.max()
    gaps = ours / norms - theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
    return float(np.abs(gaps).max())


@functools.cache
def exported(family: str) -> onnx.ModelProto:
    """The exported graph of a family; cached, since PyTorch's exporter takes seconds."""
    return export_image_tower(small_tower(FAMILIES[family][1]), SIDE)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_exports_exactly(family: str) -> None:
    own, settings = FAMILIES[family]
    tower = small_tower(settings)
    assert supports(tower, SIDE) == own
    assert largest_difference(serialise(exported(family)), tower, SIDE, [1, 2, 5]) < 1e-5


@pytest.mark.slow
@pytest.mark.xdist_group("models")  # in one process: each takes gigabytes of memory
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in IN_CI else pytest.mark.not_in_ci) for n in MODELS],
)
def test_every_model_exports_exactly(name: str) -> None:
    loaded = load_open_clip(Source(name, random_weights=True))
    tower, side = perturbed(loaded.image_tower), loaded.preprocessing.image_size
    del loaded  # frees the text tower as well
    assert supports(tower, side) == MODELS[name]
    file = serialise(export_image_tower(tower, side))
    assert largest_difference(file, tower, side, [1, 3]) < 1e-5


def test_branches_that_train_apart_are_exported_as_one() -> None:
    tower = small_tower(FAMILIES["MobileCLIP"][1])
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in tower.modules())
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in tower.modules())
    written = [node.op_type for node in exported("MobileCLIP").graph.node]
    assert written.count("Conv") < 0.8 * convolutions
    assert written.count("BatchNormalization") < 0.2 * norms
    # The export must work on a copy, since later tests use the tower.
    assert sum(isinstance(module, torch.nn.Conv2d) for module in tower.modules()) == convolutions


def test_input_and_output_are_those_of_a_bundle(clip_bundle: Bundle) -> None:
    model = onnx.load(clip_bundle.encoder_path)
    check_interface(model, [["batch", 3, 64, 64], ["batch", 128]])
    assert clip_bundle.manifest.opset == OPSET


def test_both_paths_have_one_interface() -> None:
    fused = torch.backends.mha.get_fastpath_enabled()
    theirs = export_by_pytorch(small_tower(FAMILIES["ViT"][1]), SIDE)
    assert torch.backends.mha.get_fastpath_enabled() == fused
    for model in (exported("ViT"), theirs):
        check_interface(model, [["batch", 3, SIDE, SIDE], ["batch", 32]])


def check_interface(model: onnx.ModelProto, expected: list[list[Any]]) -> None:
    (taken,), (given,) = model.graph.input, model.graph.output
    shapes = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (taken, given)
    ]
    assert (taken.name, given.name) == ("pixel_values", "image_features")
    assert shapes == expected
    assert [(o.domain, o.version) for o in model.opset_import if not o.domain] == [("", OPSET)]


def test_features_are_raw_and_do_not_depend_on_the_batch(
    clip_bundle: Bundle, clip_folder: Path
) -> None:
    encoder = open_encoder(clip_bundle, EncoderConfig())
    pixels = noise_pixels(9, clip_bundle.manifest.preprocessing, seed=3)
    features = encoder.embed(pixels)
    tower = load_open_clip(Source(f"local-dir:{clip_folder}")).image_tower
    with torch.no_grad():
        theirs = tower(torch.from_numpy(pixels))
    np.testing.assert_allclose(features, theirs.numpy(), atol=1e-5, rtol=1e-4)
    assert np.abs(np.linalg.norm(features, axis=1) - 1).min() > 0.01
    for i in range(9):
        np.testing.assert_array_equal(encoder.embed(pixels[i : i + 1])[0], features[i])


@pytest.mark.parametrize("family", ["ViT", "ResNet"])
def test_no_path_and_no_note_travels(family: str) -> None:
    data = serialise(exported(family))
    model = onnx.load_model_from_string(data)
    for tensor in model.graph.initializer:
        tensor.raw_data = b""
    rest = model.SerializeToString()
    assert not re.search(rb"\.py|/home|/root|site-packages|/tmp", rest)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    weights = sum(4 * int(np.prod(t.dims)) for t in model.graph.initializer)
    assert len(data) < weights + 250 * len(model.graph.node) + 10_000


def test_a_tower_that_cannot_be_exported() -> None:
    class Unexportable(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.sum() if pixels.numpy().sum() > 0 else pixels.mean()

    with pytest.raises(ExportError, match="the image tower cannot be exported: "):
        export_image_tower(Unexportable(), 8)


def test_a_file_ends_at_two_gigabytes() -> None:
    tensor = onnx.TensorProto(data_type=onnx.TensorProto.FLOAT, dims=[2**15, 2**14], name="w")
    large = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    with pytest.raises(
        ExportError, match=r"weights take 2\.1 GB, .* limited to 2 GB: .*--precision fp16"
    ):
        serialise(large)
    tensor.data_type = onnx.TensorProto.FLOAT16  # as after a conversion to fp16
    assert serialise(helper.make_model(helper.make_graph([], "g", [], [], [tensor])))


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
