"""Guesses about weights that do not fit: the model that they belong to, and how to go on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from fedclip_edge.exporting.checkpoint import State

_KINDS: tuple[tuple[str, str], ...] = (
    (
        r"^visual\.trunk\.attn_pool\.",
        "a model with timm's image tower, such as SigLIP; name the model they were trained as",
    ),
    (
        r"\.lora_|lora_(A|B|up|down)\b",
        (
            "a LoRA adapter, which has only the changes to another model's weights; merge it into "
            "that model (peft's merge_and_unload()) and save the merged model's state_dict()"
        ),
    ),
    (
        r"absmax|quant_map|\.SCB$|qweight|weight_scale_inv",
        "quantised weights; save the model in fp32, fp16 or bf16",
    ),
    (
        r"language_model\.|qformer\.|multi_modal_projector\.",
        "a vision-language model with a text generator; save a CLIP's state_dict()",
    ),
    (
        r"embeddings\.word_embeddings\.weight",
        "a text model of transformers (BERT or alike) without CLIP's image tower",
    ),
    (
        r"^(blocks\.0\.attn\.qkv|patch_embed\.proj|stages\.0\.blocks\.0|stem\.)",
        "an image model of timm without CLIP's text tower; use it by --onnx",
    ),
    (
        r"^(encoder\.layers\.encoder_layer_0\.|layer1\.0\.conv1.*)",
        "an image model of torchvision or timm without CLIP's text tower; use it by --onnx",
    ),
    (r"^(vit|encoder\.layer|embeddings\.patch_embeddings)\.", "a ViT of transformers, not a CLIP"),
)
_ALSO_IN_CLIP = 4  # the first of these kinds, which a CLIP's weights can be too
_BLOCK = r"transformer\.resblocks\.(\d+)\."


def kind_of(state: State) -> str:
    """Guess from the names of the tensors, with a next step; "" if they tell nothing."""
    kinds = _KINDS
    if any(re.match(r"(visual|vision_model)\.", name) for name in state):
        kinds = _KINDS[:_ALSO_IN_CLIP]
    for pattern, kind in kinds:
        if any(re.search(pattern, name) for name in state):
            return kind
    return ""


def architectures(state: State) -> list[str]:
    """open_clip's names of the architectures whose shapes these tensors have.

    `state` has open_clip's names. Only open_clip's own ViT and ResNet are recognised, not timm's
    towers. The list is empty if nothing fits.
    """
    import open_clip

    facts = _facts_of_weights(state)
    if "width" not in facts:
        return []
    names = []
    for name in open_clip.list_models():
        config = _facts_of_config(open_clip.get_model_config(name))
        if config and all(config[fact] == value for fact, value in facts.items()):
            names.append(name)
    return names


def _facts_of_weights(state: State) -> dict[str, Any]:
    """Sizes that the shapes show; a fact is left out if its tensor is missing."""
    facts: dict[str, Any] = {}
    plain = {name.removeprefix("text."): tensor for name, tensor in state.items()}

    def fact(name: str, tensor: str, of: Callable[[tuple[int, ...]], int]) -> None:
        if tensor in plain:
            facts[name] = of(tuple(plain[tensor].shape))

    if "visual.layer1.0.conv1.weight" in plain:
        fact("width", "visual.layer1.0.conv1.weight", lambda shape: shape[0])
        facts["layers"] = [
            len(
                {
                    found[1]
                    for name in plain
                    if (found := re.match(rf"visual\.layer{i}\.(\d+)\.", name))
                }
            )
            for i in (1, 2, 3, 4)
        ]
        fact("features", "visual.attnpool.c_proj.weight", lambda shape: shape[0])
    elif "visual.conv1.weight" in plain:
        fact("width", "visual.conv1.weight", lambda shape: shape[0])
        fact("patch", "visual.conv1.weight", lambda shape: shape[-1])
        fact("places", "visual.positional_embedding", lambda shape: shape[0] - 1)
        fact("features", "visual.proj", lambda shape: shape[1])
        facts["layers"] = _depth(plain, rf"visual\.{_BLOCK}")
    facts["decoder"] = any(name.startswith("text_decoder.") for name in state)  # CoCa's
    fact("words", "token_embedding.weight", lambda shape: shape[0])
    fact("text width", "token_embedding.weight", lambda shape: shape[1])
    fact("context", "positional_embedding", lambda shape: shape[0])
    if "token_embedding.weight" in plain:
        facts["text layers"] = _depth(plain, _BLOCK)
    return facts


def _depth(names: Mapping[str, object], pattern: str) -> int:
    return 1 + max(
        (int(found[1]) for name in names if (found := re.match(pattern, name))), default=-1
    )


def _facts_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same sizes from open_clip's configuration; empty for towers of timm and transformers."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    size = vision.get("image_size", 224)
    if "timm_model_name" in vision or "hf_model_name" in text or not isinstance(size, int):
        return {}
    patch = vision.get("patch_size", 16)
    layers = vision.get("layers", 12)
    return {
        "width": vision.get("width", 64 if isinstance(layers, list) else 768),
        "patch": patch,
        "places": (size // patch) ** 2 if patch else 0,
        "features": config["embed_dim"],
        "layers": layers,
        "decoder": "multimodal_cfg" in config,
        "words": text.get("vocab_size", 49408),
        "text width": text.get("width", 512),
        "context": text.get("context_length", 77) + bool(text.get("embed_cls")),
        "text layers": text.get("layers", 12),
    }
