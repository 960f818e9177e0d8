"""Class names and a prompt to unit text vectors; the text tower itself never travels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting.open_clip_model import ClipModel
from fedclip_edge.records import ClassTexts

_AT_ONCE = 256  # prompts in one batch


def class_texts(model: ClipModel, names: Sequence[str], prompt: str) -> ClassTexts:
    """What the text tower says of each class, as unit vectors [C, D], with the logit scale.

    `prompt` holds {} where the name goes. Raises ConfigError for a prompt without it, for a
    prompt too long for the model, and for class names that are no two distinct ones.
    """
    if prompt.count("{}") != 1:
        raise ConfigError(f"the prompt {prompt!r} needs {{}} once, where the class name goes")
    prompts = [prompt.replace("{}", name) for name in names]
    _check_lengths(model, prompts)
    rows = []
    for start in range(0, len(prompts), _AT_ONCE):
        tokens = model.tokenize(prompts[start : start + _AT_ONCE])  # (n, context_length)
        if int(tokens.max()) >= model.vocab_size:
            raise ConfigError(
                f"the tokenizer of {model.name} numbers tokens up to {int(tokens.max())}, but the "
                f"model knows {model.vocab_size}; its configuration names the wrong bpe_path"
            )
        with torch.no_grad():
            rows.append(model.clip.encode_text(tokens).double().numpy())  # (n, D)
    try:
        vectors = np.concatenate(rows) if rows else np.zeros((0, 1))  # (C, D)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return ClassTexts(tuple(names), vectors.astype(np.float32), model.logit_scale, prompt)
    except ValueError as error:
        raise ConfigError(f"the classes cannot be used: {error}") from error


def _check_lengths(model: ClipModel, prompts: Sequence[str]) -> None:
    """open_clip cuts a longer text in silence, and its end is where the class name stands."""
    if model.count_tokens is None:
        return
    for text in prompts:
        count = model.count_tokens(text)
        if count > model.context_length:
            raise ConfigError(
                f"the prompt {text!r} has {count} tokens, and {model.name} reads "
                f"{model.context_length}; shorten the class name or the prompt"
            )
