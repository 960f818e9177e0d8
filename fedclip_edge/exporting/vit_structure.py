"""Check that a tower is a VisionTransformer of open_clip that vit_graph.py can write exactly.

Law: unknown modules and settings are refused, and so are subclasses of known modules, because a
subclass may compute anything.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_OPEN_CLIP = "open_clip.transformer."
_NORMS = (nn.LayerNorm, "LayerNorm", "LayerNormFp32")


def supports(tower: nn.Module, image_size: int) -> bool:
    """True if `write_vit_graph` can write `tower`: evaluation mode, float32, only known parts.

    `tower` must be of open_clip's own class, not of a subclass. `image_size` is S.
    """
    if not is_exactly(tower, "VisionTransformer") or not _holds(
        tower, "conv1", "patch_dropout", "ln_pre", "transformer", "ln_post"
    ):
        return False
    vit: Any = tower
    width = vit.conv1.out_channels
    return (
        (vit.pool_type, vit.attn_pool, vit.output_tokens) == ("tok", None, False)
        and all(p.dtype == torch.float32 for p in vit.parameters())
        and _is_patch_product(vit.conv1, image_size)
        and (is_exactly(vit.patch_dropout, nn.Identity, "PatchDropout") and not vit.training)
        and vit.class_embedding.shape == (width,)
        and vit.positional_embedding.shape == (patches(vit, image_size) + 1, width)
        and (is_exactly(vit.ln_pre, nn.Identity) or _is_norm(vit.ln_pre, width))
        and is_exactly(vit.transformer, "Transformer")
        and _holds(vit.transformer, "resblocks")
        and vit.transformer.batch_first
        and is_exactly(vit.transformer.resblocks, nn.ModuleList)
        and len(vit.transformer.resblocks) > 0
        and all(_is_block(block, width) for block in vit.transformer.resblocks)
        and _is_norm(vit.ln_post, width)
        and (vit.proj is None or (vit.proj.ndim == 2 and len(vit.proj) == width))
    )


def patches(vit: Any, image_size: int) -> int:
    """Number of patches in a picture of side `image_size`."""
    return int((image_size // vit.conv1.kernel_size[0]) ** 2)


def is_exactly(module: object, *kinds: type | str) -> bool:
    """True if the module's type is one of `kinds`; a subclass is not.

    A string names a class of open_clip.transformer.
    """
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    return any(
        name == _OPEN_CLIP + kind if isinstance(kind, str) else type(module) is kind
        for kind in kinds
    )


def _holds(module: nn.Module, *children: str) -> bool:
    return {name for name, _ in module.named_children()} == set(children)


def _is_patch_product(conv: Any, image_size: int) -> bool:
    side = conv.kernel_size[0] if is_exactly(conv, nn.Conv2d) else 0
    return (
        side > 0
        and image_size % side == 0
        and conv.kernel_size == conv.stride == (side, side)
        and conv.bias is None
        and (conv.in_channels, conv.groups) == (3, 1)
        and (conv.padding, conv.dilation) == ((0, 0), (1, 1))
    )


def _is_norm(norm: Any, width: int) -> bool:
    return (
        is_exactly(norm, *_NORMS)
        and norm.normalized_shape == (width,)
        and norm.weight is not None
        and norm.bias is not None
    )


def _is_linear(linear: Any, inputs: int, outputs: int) -> bool:
    return (
        (
            is_exactly(linear, nn.Linear)
            or is_exactly(linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
        )
        and linear.weight.shape == (outputs, inputs)
        and linear.bias is not None
    )


def _is_block(block: Any, width: int) -> bool:
    if not is_exactly(block, "ResidualAttentionBlock") or not _holds(
        block, "ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2"
    ):
        return False
    attention, mlp = block.attn, block.mlp
    if not is_exactly(attention, nn.MultiheadAttention) or not is_exactly(mlp, nn.Sequential):
        return False
    if [name for name, _ in mlp.named_children()] != ["c_fc", "gelu", "c_proj"]:
        return False
    hidden = getattr(mlp.c_fc, "out_features", 0)
    return (
        all(_is_norm(norm, width) for norm in (block.ln_1, block.ln_2))
        and all(is_exactly(scale, nn.Identity, "LayerScale") for scale in (block.ls_1, block.ls_2))
        and attention.batch_first
        and not attention.add_zero_attn
        and (attention.bias_k, attention.bias_v) == (None, None)
        and attention.in_proj_weight is not None  # None if keys have another width than queries
        and attention.in_proj_weight.shape == (3 * width, width)
        and attention.in_proj_bias is not None
        and attention.num_heads * attention.head_dim == width
        and _is_linear(attention.out_proj, width, width)
        and _is_linear(mlp.c_fc, width, hidden)
        and _is_linear(mlp.c_proj, hidden, width)
        and (
            is_exactly(mlp.gelu, "QuickGELU")
            or (is_exactly(mlp.gelu, nn.GELU) and mlp.gelu.approximate == "none")
        )
    )
