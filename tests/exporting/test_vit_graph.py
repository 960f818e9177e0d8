"""Our graph of open_clip's VisionTransformer: equal to the module, or not supported."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.exporting.image_tower import export_image_tower
from fedclip_edge.exporting.onnx_file import serialise
from fedclip_edge.exporting.torchvision_ops import declare_missing
from fedclip_edge.exporting.vit_structure import supports
from fedclip_edge.vision.encoder import open_onnx

declare_missing()
from open_clip import transformer  # noqa: E402

pytestmark = pytest.mark.one_python
SIDE = 24  # pixels; 9 patches of 8 x 8 pixels, plus a class token


def tower(**switches: Any) -> Any:
    """A small VisionTransformer; every parameter is noise, because zeros and ones hide errors."""
    shape = {"image_size": SIDE, "patch_size": 8, "width": 48, "layers": 2, "heads": 3}
    seed = switches.pop("seed", 0)
    torch.manual_seed(seed)
    vit = transformer.VisionTransformer(**{**shape, "mlp_ratio": 2, "output_dim": 20, **switches})
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return vit.eval()


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def largest_difference(vit: Any) -> float:
    """The largest difference on unit vectors; also checks norms, and features in other batches."""
    file = serialise(export_image_tower(vit, SIDE))
    encoder = open_onnx(file, EncoderConfig(), image_size=SIDE)
    pixels = pictures(5)
    with torch.no_grad():
        theirs = vit(pixels).double().numpy()
    ours = encoder.embed(pixels.numpy())
    for count in (1, 2):
        fewer = encoder.embed(pixels[:count].numpy())
        assert np.abs(fewer - ours[:count]).max() < 1e-6 * np.linalg.norm(ours, axis=1).max()
    assert np.abs(np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1) - 1).max() < 1e-5
    gap = float(np.abs(unit(ours.astype(np.float64)) - unit(theirs)).max())
    # The pictures must differ by more than the gap, or a constant graph would pass. With some
    # random weights they differ by 5e-4 only.
    assert np.abs(unit(theirs)[1:] - unit(theirs)[:-1]).max() > 10 * gap
    return gap


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@settings(max_examples=20)
@given(
    act_layer=st.sampled_from([nn.GELU, transformer.QuickGELU]),
    norm_layer=st.sampled_from(
        [
            transformer.LayerNorm,
            transformer.LayerNormFp32,
            functools.partial(transformer.LayerNorm, eps=1e-3),
        ]
    ),
    ls_init_value=st.sampled_from([None, 0.1]),
    no_ln_pre=st.booleans(),
    final_ln_after_pool=st.booleans(),
    pos_embed_type=st.sampled_from(["learnable", "sin_cos_2d"]),
    patch_dropout=st.sampled_from([0.0, 0.5]),
    patch_size=st.sampled_from([8, 12]),
    layers=st.integers(1, 3),
    # Head widths 48, 16 and 12, whose square roots are not all powers of 2.
    heads=st.sampled_from([1, 3, 4]),
    mlp_ratio=st.sampled_from([1.0, 2.5]),
    seed=st.integers(0, 2**32),
)
def test_every_switch_it_knows_is_exact(**switches: Any) -> None:
    vit = tower(**switches)
    assert supports(vit, SIDE)
    assert largest_difference(vit) < 1e-5


def replaced(change: Callable[[Any], object]) -> Any:
    vit = tower()
    change(vit)
    return vit


class _Subclass(transformer.VisionTransformer):  # type: ignore[misc]
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(2 * super().forward(pixels))


def subclass() -> Any:
    vit = tower()
    vit.__class__ = _Subclass
    return vit


UNKNOWN: dict[str, Callable[[], Any]] = {
    "avg pooling": lambda: tower(pool_type="avg"),
    "attentional pooling": lambda: tower(attentional_pool=True, attn_pooler_heads=4),
    "query and key norms": lambda: tower(qk_norm=True),
    "cosine attention": lambda: tower(scaled_cosine_attn=True),
    "scaled heads": lambda: tower(scale_heads=True),
    "a norm in attention": lambda: tower(scale_attn_inner=True),
    "a norm after attention": lambda: tower(scale_attn=True),
    "a norm in the MLP": lambda: tower(scale_fc=True),
    "custom blocks": lambda: tower(block_type="custom"),
    "SiLU": lambda: tower(act_layer=nn.SiLU),
    "GELU by tanh": lambda: tower(act_layer=functools.partial(nn.GELU, approximate="tanh")),
    "tokens as well": lambda: tower(output_tokens=True),
    "half precision": lambda: tower().half(),
    "a subclass": subclass,
    "a patch convolution with bias": lambda: replaced(
        lambda vit: setattr(vit, "conv1", nn.Conv2d(3, 48, 8, 8, bias=True))
    ),
    "patches that overlap": lambda: replaced(
        lambda vit: setattr(vit, "conv1", nn.Conv2d(3, 48, 12, 6, bias=False))
    ),
    "a norm without bias": lambda: replaced(
        lambda vit: setattr(vit, "ln_post", nn.LayerNorm(48, bias=False))
    ),
    "a norm that is none": lambda: replaced(
        lambda vit: setattr(vit.transformer.resblocks[1], "ln_2", nn.Identity())
    ),
    "another part in a block": lambda: replaced(
        lambda vit: vit.transformer.resblocks[0].add_module("extra", nn.Identity())
    ),
    "a parametrised weight": lambda: replaced(
        lambda vit: nn.utils.parametrizations.weight_norm(vit.transformer.resblocks[0].mlp.c_fc)
    ),
    "a learned key": lambda: replaced(
        lambda vit: setattr(
            vit.transformer.resblocks[0],
            "attn",
            nn.MultiheadAttention(48, 3, batch_first=True, add_bias_kv=True),
        )
    ),
    "no transformer at all": nn.Flatten,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_it_does_not_know_it_does_not_admit(name: str) -> None:
    assert not supports(UNKNOWN[name](), SIDE)


def test_another_picture_size_is_not_admitted() -> None:
    assert supports(tower(), SIDE)
    assert not supports(tower(), 2 * SIDE)
    assert not supports(tower(image_size=28), 28)  # 8 does not divide 28


def test_pruned_towers_are_exact_or_go_by_pytorch() -> None:
    headless = tower()
    headless.prune_intermediate_layers(1)
    assert supports(headless, SIDE)
    assert largest_difference(headless) < 1e-5
    headless.prune_intermediate_layers(1, prune_norm=True)
    assert not supports(headless, SIDE)


def test_only_the_class_token_leaves_the_last_block() -> None:
    model = export_image_tower(tower(layers=3), SIDE)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in inferred.graph.value_info
    }
    inner = {
        node.input[1]: shapes.get(node.output[0])
        for node in model.graph.node
        if len(node.input) > 1
    }
    ranks = {name: len(shape) for name, shape in inner.items() if shape}
    assert ranks["block1.q.weight"] == ranks["block1.c_fc.weight"] == 3  # (L, B, W)
    assert ranks["block2.q.weight"] == ranks["block2.c_fc.weight"] == 2  # (B, W)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("act_layer", [nn.GELU, transformer.QuickGELU])
def test_a_feature_does_not_depend_on_its_batch(threads: int, act_layer: Any) -> None:
    vit = tower(width=128, heads=2, output_dim=64, mlp_ratio=4, act_layer=act_layer)
    file = serialise(export_image_tower(vit, SIDE))
    encoder = open_onnx(file, EncoderConfig(threads=threads), image_size=SIDE)
    pixels = pictures(9).numpy()
    together = encoder.embed(pixels)
    for count in (1, 2, 3, 5, 8):
        parts = [encoder.embed(pixels[i : i + count]) for i in range(0, 9, count)]
        np.testing.assert_array_equal(np.concatenate(parts), together)


def test_the_same_weights_give_the_same_bytes() -> None:
    first, second, other = (
        serialise(export_image_tower(tower(seed=seed), SIDE)) for seed in (0, 0, 1)
    )
    assert first == second
    assert first != other


def test_the_module_is_left_as_it_was() -> None:
    vit = tower(ls_init_value=0.1)
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    export_image_tower(vit, SIDE)
    for name, value in vit.state_dict().items():
        assert torch.equal(value, before[name]), name
