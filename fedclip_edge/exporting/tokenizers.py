"""Texts to tokens as open_clip's configuration of a model says; its files may have to be fetched."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedclip_edge.errors import ExportError, first_line
from fedclip_edge.exporting.hub import hub_answers
from fedclip_edge.exporting.recipe import PREFIX
from fedclip_edge.exporting.sources import CONFIG, folder_config


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Cuts a text that is too long in silence, as open_clip does; `count` tells beforehand."""

    tokenize: Callable[[Sequence[str]], torch.Tensor]  # texts -> int64 (n, context_length)
    count: Callable[[str], int]  # tokens of a text, with those that mark its start and end
    context_length: int


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of open_clip's `name`, a model's or `local-dir:FOLDER`.

    Raises ExportError where a package or the tokenizer's files are missing and no hub answers.
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
    except Exception as error:  # whatever transformers and the hub's client raise
        if not remote:
            raise ExportError(f"the tokenizer of {name} cannot be read: {first_line(error)}") from (
                error
            )
        raise ExportError(
            f"the tokenizer of {name} cannot be had: no hub gave {remote}; put its files, the "
            f"weights and {CONFIG} into a folder and export {PREFIX}FOLDER"
        ) from error
    return Tokenizer(theirs, _counting(theirs), int(theirs.context_length))


def stand_in(context_length: int, vocab_size: int, end: int) -> Tokenizer:
    """For random weights whose tokenizer cannot be had: a number for each word, then `end`.

    Means as little as the weights do, but is the same in every process.
    """

    def words(text: str) -> list[int]:
        lowest = min(end, vocab_size - 1)  # pooling finds the end as the highest number
        return [1 + zlib.crc32(word.encode()) % max(1, lowest - 1) for word in text.split()]

    def tokenize(texts: Sequence[str]) -> torch.Tensor:
        tokens = torch.zeros(len(texts), context_length, dtype=torch.int64)
        for row, text in zip(tokens, texts, strict=True):
            numbers = [*words(text)[: context_length - 1], end]
            row[: len(numbers)] = torch.tensor(numbers)
        return tokens

    return Tokenizer(tokenize, lambda text: len(words(text)) + 1, context_length)


def _offline(repository: str) -> dict[str, Any]:
    """Without a hub, transformers asks it for minutes; its cache may hold the files."""
    return {} if hub_answers(repository) else {"local_files_only": True}


def _merges(text: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """The merges' absolute path: open_clip takes a relative one from the working directory."""
    path = (text.get("tokenizer_kwargs") or {}).get("bpe_path")
    return {} if path is None or folder is None else {"bpe_path": str(folder / path)}


def _counting(tokenizer: Any) -> Callable[[str], int]:
    if hasattr(tokenizer, "encode"):  # open_clip's own; without start and end
        return lambda text: len(tokenizer.encode(text)) + 2

    def count(text: str) -> int:  # a wrapper of transformers'
        marks = 3 if tokenizer.tokenizer_mode == "clips" else 0
        numbers = tokenizer.tokenizer(
            tokenizer.clean_fn(text), add_special_tokens=not marks
        ).input_ids
        return len(numbers) + marks

    return count
