"""Class texts from class names and prompts; the text tower itself does not go into a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting.open_clip_model import ClipModel
from fedclip_edge.exporting.recipe import BETWEEN, check_prompt
from fedclip_edge.records import ClassTexts

_AT_ONCE = 256  # texts in one batch


def class_texts(
    model: ClipModel,
    names: Sequence[str],
    prompts: Sequence[str],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> ClassTexts:
    """Encode each class name with the text tower: unit vectors float32 (C, D) and the logit scale.

    Each prompt contains {}, which the class name replaces. Several prompts form an ensemble: the
    vector of a class is the mean of its prompts' unit vectors, normalised again, as in CLIP
    (arXiv 2103.00020, section 3.1.4). `progress` is called with (done, total) texts after each
    batch. Raises ConfigError without prompts, for a prompt that `check_prompt` refuses, for a text
    that is too long for the model, for a tokenizer that does not fit the model, and for class
    names that are fewer than two, empty or equal.
    """
    if not prompts:
        raise ConfigError("no prompt is given; write one, with {} for the class name")
    try:
        for prompt in prompts:
            check_prompt(prompt)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    texts = [prompt.replace("{}", name) for name in names for prompt in prompts]
    _check_lengths(model, texts)
    vectors = np.zeros((len(names), 1))  # (C, D)
    for start in range(0, len(texts), _AT_ONCE):
        units = _units(model, texts[start : start + _AT_ONCE])  # (n, D)
        if start == 0:
            vectors = np.zeros((len(names), units.shape[1]))
        np.add.at(vectors, (start + np.arange(len(units))) // len(prompts), units)
        progress(start + len(units), len(texts))
    try:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        described = BETWEEN.join(prompts)
        return ClassTexts(tuple(names), vectors.astype(np.float32), model.logit_scale, described)
    except ValueError as error:
        raise ConfigError(f"the classes cannot be used: {error}") from error


def prompts_of(texts: ClassTexts) -> tuple[str, ...]:
    """Prompts with which `class_texts` made these texts; ("unknown",) if they are not known."""
    return tuple(texts.prompt.split(BETWEEN))


def _units(model: ClipModel, texts: Sequence[str]) -> Any:
    """Unit vectors float64 (n, D) of n texts; raises ConfigError if a text has no direction."""
    tokens = model.tokenize(texts)  # (n, context_length)
    if int(tokens.max()) >= model.vocab_size:
        raise ConfigError(
            f"the tokenizer of {model.name} gives the token {int(tokens.max())}, but the model has "
            f"only {model.vocab_size} tokens; its configuration names the wrong tokenizer"
        )
    vectors = encode_texts(model.clip, tokens).double().numpy()  # (n, D)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)  # (n, 1)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ConfigError(
            f"the text tower of {model.name} returns zeros, infinity or NaN for a class; its "
            "weights are broken, so export another file of weights"
        )
    return vectors / lengths


def encode_texts(clip: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Text features float32 (n, D) of tokens int64 (n, L), where L is the context length.

    Only the direction of the features matters: they are unit vectors in some cases and raw in
    others. With a causal mask, tokens after the end of a text cannot influence it. So a tower that
    takes the feature from the end needs to compute only up to the end of the longest text. The
    result is the same within 1e-6, and class names are encoded several times faster.
    """
    tower = getattr(clip, "text", clip)  # CLIP is its own text tower
    length = _needed_length(clip, tower, tokens)
    with torch.no_grad():
        if length is None:
            features: torch.Tensor = clip.encode_text(tokens, normalize=False)
            return features
        prefix = "" if tower is clip else "text."
        shorter = {
            f"{prefix}positional_embedding": tower.positional_embedding[:length],
            f"{prefix}attn_mask": tower.attn_mask[:length, :length],
        }
        # functional_call runs forward, not encode_text; forward gives the same, normalised.
        outputs = torch.func.functional_call(clip, shorter, (None, tokens[:, :length]))
        cut: torch.Tensor = outputs["text_features"] if clip.output_dict else outputs[1]
        return cut


def _needed_length(clip: Any, tower: Any, tokens: torch.Tensor) -> int | None:
    """Number of tokens up to the last end of a text, or None if the tower needs all tokens."""
    import open_clip

    if not isinstance(clip, (open_clip.CLIP, open_clip.CustomTextCLIP)):
        return None
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    causal = getattr(tower, "attn_mask", None) is not None
    if not causal or getattr(tower, "cls_emb", None) is not None:
        return None
    if pool == "argmax":
        ends = tokens.argmax(dim=-1)  # (n,)
    elif pool == "eos":
        end = tower.text_eos_id if tower is clip else tower.eos_id
        ends = (tokens == end).int().argmax(dim=-1)  # (n,)
    else:
        return None
    return int(ends.max()) + 1


def _check_lengths(model: ClipModel, texts: Sequence[str]) -> None:
    """Raise ConfigError for a text that is longer than the model's context.

    open_clip would cut the text silently, and the class name is often at its end.
    """
    for text in texts:
        count = model.count_tokens(text)
        if count > model.context_length:
            raise ConfigError(
                f"the prompt {text!r} has {count} tokens, but {model.name} reads at most "
                f"{model.context_length}; shorten the class name or the prompt"
            )
