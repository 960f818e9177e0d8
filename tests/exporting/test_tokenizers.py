"""The tokenizer: open_clip's own, an error if it is missing, or a stand-in for random weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fedclip_edge.errors import ExportError
from fedclip_edge.exporting import tokenizers
from fedclip_edge.exporting.open_clip_model import load_open_clip
from fedclip_edge.exporting.recipe import Source
from fedclip_edge.exporting.texts import class_texts
from fedclip_edge.exporting.tokenizers import open_tokenizer, stand_in


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tokenizers, "hub_answers", lambda repository: False)
    folder = tmp_path / "configs"
    folder.mkdir()
    with small_models.registered(folder):
        yield


def test_the_count_is_that_of_the_tokens() -> None:
    tokenizer = open_tokenizer("small")
    assert tokenizer.context_length == 77
    for text in ("", "a picture of a dog", "Straße, 12 pm!", "tea cup " * 20):
        tokens = tokenizer.tokenize([text])
        assert tokens.shape == (1, 77)
        assert tokenizer.count(text) == int((tokens != 0).sum())
    assert tokenizer.count("word " * 100) == 102


def test_a_tokenizer_that_cannot_be_had_is_explained() -> None:
    with pytest.raises(ExportError) as caught:
        open_tokenizer("small-hub-tokenizer")
    if importlib.util.find_spec("transformers") is None:
        assert "needs the Python package transformers" in str(caught.value)
    else:
        assert "org/tokens cannot be downloaded from the Hugging Face hub; put its files" in str(
            caught.value
        )


def test_weights_at_hand_do_not_help_without_the_tokenizer(tmp_path: Path) -> None:
    model = load_open_clip(Source("small-hub-tokenizer", random_weights=True))
    save_file(model.clip.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ExportError, match="the tokenizer of small-hub-tokenizer"):
        load_open_clip(Source("small-hub-tokenizer", str(tmp_path / "w.safetensors")))


def test_random_weights_take_a_stand_in() -> None:
    model = load_open_clip(Source("small-hub-tokenizer", random_weights=True))
    texts = class_texts(model, ("red house", "tree"), ["a picture of a {}"])
    assert texts.vectors.shape == (2, 32)
    assert abs(float(texts.vectors[0] @ texts.vectors[1])) < 0.9999


@given(st.lists(st.text(max_size=60), min_size=1, max_size=5), st.integers(4, 300))
def test_a_stand_in_numbers_words_below_the_end(texts: list[str], vocabulary: int) -> None:
    tokenizer = stand_in(16, vocabulary, vocabulary - 1)
    tokens = tokenizer.tokenize(texts)
    assert (tokens.shape, tokens.dtype) == ((len(texts), 16), torch.int64)
    assert int(tokens.min()) >= 0
    for text, row in zip(texts, tokens, strict=True):
        end = min(tokenizer.count(text), 16) - 1
        assert int(row.argmax()) == end
        assert int(row[end]) == vocabulary - 1
    assert torch.equal(tokens, stand_in(16, vocabulary, vocabulary - 1).tokenize(texts))
