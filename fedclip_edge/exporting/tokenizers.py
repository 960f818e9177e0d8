"""Tokenizers as open_clip's configuration of a model defines them; some download files."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedclip_edge.errors import ExportError, reason_of
from fedclip_edge.exporting.hub import hub_answers
from fedclip_edge.exporting.recipe import PREFIX
from fedclip_edge.exporting.sources import CONFIG, folder_config


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Tokenizer of a model.

    `tokenize` silently cuts a text that is too long, as open_clip does; `count` returns
    its full length.
    """

    tokenize: Callable[[Sequence[str]], torch.Tensor]  # texts -> int64 (n, context_length)
    count: Callable[[str], int]  # tokens of one text, with its start and end
    context_length: int


def open_tokenizer(name: str) -> Tokenizer:
    """Open the tokenizer of the model `name`, which is open_clip's name or `local-dir:FOLDER`.

    Raises ExportError if a package is missing, or if the tokenizer's files cannot be read or
    downloaded; ConfigError if the folder has no configuration.
    """
    import open_clip

    folder = Path(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
    config = folder_config(folder) if folder else open_clip.get_model_config(name)
    text = config["text_cfg"]
    remote = "" if folder else text.get("hf_tokenizer_name") or ""
    extra = _offline(remote) if remote else _merges(text, folder)
    try:
        theirs = open_clip.get_tokenizer(name, **extra)
    except ImportError as error:
        raise ExportError(
            f"the tokenizer of {name} needs the Python package {error.name or 'transformers'}, "
            "which is not installed here: pip install transformers sentencepiece"
        ) from error
    except Exception as error:  # from transformers or the hub's client
        if not remote:
            raise ExportError(f"the tokenizer of {name} cannot be read: {reason_of(error)}") from (
                error
            )
        raise ExportError(
            f"the tokenizer of {name} cannot be loaded, because {remote} cannot be downloaded from "
            f"the Hugging Face hub; put its files, the weights and {CONFIG} into a folder and "
            f"export {PREFIX}FOLDER"
        ) from error
    return Tokenizer(theirs, _counting(theirs), int(theirs.context_length))


def stand_in(context_length: int, vocab_size: int, end: int) -> Tokenizer:
    """Stand-in tokenizer for random weights: one token for each word, then the token `end`.

    It is for models whose own tokenizer is not available. Its tokens mean as little as the
    weights, but they are the same in every process, and `end` is the highest token.
    """

    def words(text: str) -> list[int]:
        lowest = min(end, vocab_size - 1)  # pooling treats the highest token as the end
        return [1 + zlib.crc32(word.encode()) % max(1, lowest - 1) for word in text.split()]

    def tokenize(texts: Sequence[str]) -> torch.Tensor:
        tokens = torch.zeros(len(texts), context_length, dtype=torch.int64)
        for row, text in zip(tokens, texts, strict=True):
            numbers = [*words(text)[: context_length - 1], end]
            row[: len(numbers)] = torch.tensor(numbers)
        return tokens

    return Tokenizer(tokenize, lambda text: len(words(text)) + 1, context_length)


def _offline(repository: str) -> dict[str, Any]:
    """Arguments that restrict transformers to its cache if the hub does not answer.

    Without them, transformers retries for minutes.
    """
    return {} if hub_answers(repository) else {"local_files_only": True}


def _merges(text: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Argument with the absolute path of a folder's file of merges, if it has one.

    open_clip would resolve a relative path against the working directory.
    """
    path = (text.get("tokenizer_kwargs") or {}).get("bpe_path")
    return {} if path is None or folder is None else {"bpe_path": str(folder / path)}


def _counting(tokenizer: Any) -> Callable[[str], int]:
    """Function that counts the tokens of a text before it is cut."""
    if hasattr(tokenizer, "encode"):  # open_clip's own; `encode` leaves out start and end
        return lambda text: len(tokenizer.encode(text)) + 2

    def count(text: str) -> int:  # open_clip's wrapper of a transformers tokenizer
        marks = 3 if tokenizer.tokenizer_mode == "clips" else 0
        numbers = tokenizer.tokenizer(
            tokenizer.clean_fn(text), add_special_tokens=not marks
        ).input_ids
        return len(numbers) + marks

    return count
