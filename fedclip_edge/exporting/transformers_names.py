"""Weights of transformers' CLIP and SigLIP under open_clip's names.

Law: a converted model has the same features as transformers' own, for pictures and for texts.
transformers has separate matrices for queries, keys and values, which open_clip joins to one, and
it multiplies by the transposed projections. Its names are those of CLIPModel and SiglipModel;
SigLIP 2 of a fixed picture size is a SiglipModel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting.checkpoint import State

# Parts of the names outside the layers. The image tower of SigLIP is timm's in open_clip.
_CLIP_TOWER = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",  # spelled so in transformers
    "vision_model.post_layernorm.": "visual.ln_post.",
    "visual_projection.weight": "visual.proj",
}
_SIGLIP_TOWER = {
    "vision_model.embeddings.patch_embedding.": "visual.trunk.patch_embed.proj.",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.post_layernorm.": "visual.trunk.norm.",
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    "vision_model.head.attention.out_proj.": "visual.trunk.attn_pool.proj.",
    "vision_model.head.layernorm.": "visual.trunk.attn_pool.norm.",
    "vision_model.head.mlp.": "visual.trunk.attn_pool.mlp.",
}
_TEXT = {
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
    "text_model.head.": "text_projection.",
}
# Parts of the names in a layer of open_clip's own transformer and of timm's.
_OPEN_CLIP_LAYER = {
    "layer_norm1.": "ln_1.",
    "self_attn.qkv.": "attn.in_proj_",
    "self_attn.out_proj.": "attn.out_proj.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
_TIMM_LAYER = {
    "layer_norm1.": "norm1.",
    "self_attn.qkv.": "attn.qkv.",
    "self_attn.out_proj.": "attn.proj.",
    "layer_norm2.": "norm2.",
    "mlp.": "mlp.",
}
_LAYER = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)")
_QUERY = re.compile(r"(.+\.self_attn\.)q_proj\.(weight|bias)")
_TRANSPOSED = ("visual.proj", "text_projection")
_POOLED = re.compile(r"vision_model\.head\.attention\.in_proj_(weight|bias)")
_PATCHES = "vision_model.embeddings.patch_embedding"


@dataclass(frozen=True)
class Settings:
    """Settings of transformers' model that the shapes of its tensors do not show."""

    activations: frozenset[str]  # of both towers, such as "quick_gelu"; empty if it is not stated
    vision_heads: int | None  # None if it is not stated


def is_transformers(state: Mapping[str, torch.Tensor]) -> bool:
    """True if the names are those of transformers' CLIP or SigLIP, or of one of their towers."""
    return any(name.startswith(("vision_model.", "text_model.")) for name in state)


def to_open_clip(state: Mapping[str, torch.Tensor]) -> State:
    """Give the tensors open_clip's names and shapes; names that are not known stay as they are."""
    siglip = _is_siglip(state)
    top = {**(_SIGLIP_TOWER if siglip else _CLIP_TOWER), **_TEXT}
    made: State = {}
    for name, tensor in _joined(state).items():
        layer = _LAYER.fullmatch(name)
        if layer is None:
            new = _renamed(name, top)
        elif layer[1] == "vision" and siglip:
            new = f"visual.trunk.blocks.{layer[2]}.{_renamed(layer[3], _TIMM_LAYER)}"
        else:
            tower = "visual.transformer" if layer[1] == "vision" else "transformer"
            new = f"{tower}.resblocks.{layer[2]}.{_renamed(layer[3], _OPEN_CLIP_LAYER)}"
        made[new] = tensor.T if new in _TRANSPOSED else tensor
    positions = made.get("visual.trunk.pos_embed")
    if positions is not None:
        made["visual.trunk.pos_embed"] = positions[None]  # (1, patches, width)
    return made


def _joined(state: Mapping[str, torch.Tensor]) -> State:
    """Join queries, keys and values of a layer; take SigLIP's pooling layer's queries apart."""
    made = dict(state)
    for name, tensor in state.items():
        if query := _QUERY.fullmatch(name):
            names = [f"{query[1]}{one}_proj.{query[2]}" for one in "qkv"]
            if all(one in made for one in names):
                made[f"{query[1]}qkv.{query[2]}"] = torch.cat([made.pop(one) for one in names])
        elif pooled := _POOLED.fullmatch(name):
            width = len(tensor) // 3
            pool = "visual.trunk.attn_pool"
            made[f"{pool}.q.{pooled[1]}"] = tensor[:width]
            made[f"{pool}.kv.{pooled[1]}"] = tensor[width:]
            del made[name]
    return made


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for theirs, ours in table.items():
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def read_settings(path: Path, state: Mapping[str, torch.Tensor]) -> Settings:
    """Read config.json beside the file of weights `path`, whose tensors are `state`.

    Without that file, every activation of SigLIP is known, but none of CLIP. Raises ConfigError for
    SigLIP 2 NaFlex, which open_clip cannot compute.
    """
    patches = state.get(f"{_PATCHES}.weight")
    if patches is not None and patches.ndim == 2:
        raise ConfigError(
            f"{path} has SigLIP 2 NaFlex, which takes pictures of any shape; bundles need a model "
            "of one picture size, such as SigLIP 2 patch16-224"
        )
    usual = "gelu_pytorch_tanh" if _is_siglip(state) else "quick_gelu"  # transformers' defaults
    try:
        table: Any = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        table = None
    kind = str(table.get("model_type", "")) if isinstance(table, dict) else ""
    if not kind.startswith(("clip", "siglip")):
        return Settings(frozenset({usual} if _is_siglip(state) else ()), None)
    both = [table.get(f"{tower}_config", table) for tower in ("vision", "text")]
    towers = [one if isinstance(one, dict) else {} for one in both]
    heads = towers[0].get("num_attention_heads")
    return Settings(
        activations=frozenset(str(tower.get("hidden_act", usual)) for tower in towers),
        vision_heads=heads if isinstance(heads, int) else None,
    )


def _is_siglip(state: Mapping[str, torch.Tensor]) -> bool:
    """True for SigLIP, whose patch embedding has a bias and whose text tower has a head."""
    return f"{_PATCHES}.bias" in state or "text_model.head.weight" in state
