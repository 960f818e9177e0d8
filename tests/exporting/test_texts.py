"""Text vectors from class names and prompts, and the length of the text context."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting import texts as texts_module
from fedclip_edge.exporting.open_clip_model import ClipModel, load_open_clip
from fedclip_edge.exporting.recipe import Source
from fedclip_edge.exporting.texts import class_texts, encode_texts

pytestmark = pytest.mark.one_python
Load = Callable[[str], ClipModel]


@pytest.fixture(scope="module")
def model(clip_folder: Path) -> ClipModel:
    return load_open_clip(Source(f"local-dir:{clip_folder}"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """`small(name)`: loads a model of small_models, once per name."""
    built: dict[str, ClipModel] = {}

    def load(name: str) -> ClipModel:
        if name not in built:
            built[name] = load_open_clip(Source(name, random_weights=True))
        return built[name]

    with small_models.registered(tmp_path_factory.mktemp("configs")):
        yield load


def whole(model: ClipModel, texts: list[str]) -> Any:
    """The unit vectors of open_clip's own text tower with the whole context."""
    with torch.no_grad():
        return model.clip.encode_text(model.tokenize(texts), normalize=True).numpy()


def test_texts_are_the_text_towers_unit_vectors(model: ClipModel) -> None:
    texts = class_texts(model, ("circle", "blue square"), ["a picture of a {}"])
    theirs = whole(model, ["a picture of a circle", "a picture of a blue square"])
    np.testing.assert_allclose(texts.vectors, theirs, atol=1e-6)
    assert texts.names == ("circle", "blue square")
    assert texts.logit_scale == model.logit_scale
    assert texts.prompt == "a picture of a {}"


def test_an_ensemble_is_the_mean_of_unit_vectors(model: ClipModel) -> None:
    texts = class_texts(model, ("circle", "square"), ["a {}", "{} drawn", "my {}"])
    means = [
        whole(model, [f"a {name}", f"{name} drawn", f"my {name}"]).mean(axis=0)
        for name in ("circle", "square")
    ]
    expected = np.stack([mean / np.linalg.norm(mean) for mean in means])
    np.testing.assert_allclose(texts.vectors, expected, atol=1e-6)
    assert texts.prompt == "a {} | {} drawn | my {}"


def test_many_classes_are_the_same_as_few(model: ClipModel) -> None:
    names = tuple(f"thing {i}" for i in range(300))
    many, few = class_texts(model, names, ["a {}"]), class_texts(model, names[-2:], ["a {}"])
    np.testing.assert_allclose(many.vectors[-2:], few.vectors, atol=1e-6)


def test_an_ensemble_that_is_cut_into_batches_stays_in_order(
    model: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, prompts = tuple(f"thing {i}" for i in range(11)), ["a {}", "the {}", "{}"]
    expected = class_texts(model, names, prompts)
    monkeypatch.setattr(texts_module, "_AT_ONCE", 4)
    told: list[tuple[int, int]] = []
    again = class_texts(model, names, prompts, lambda *done: told.append(done))
    np.testing.assert_allclose(again.vectors, expected.vectors, atol=1e-6)
    assert told == [(n, 33) for n in (*range(4, 33, 4), 33)]


words = st.lists(
    st.sampled_from(["red", "blue", "house", "tree", "umbrella", "of", "the", "a"]), max_size=40
)


@pytest.mark.parametrize("name", ["small", "small-eos", "small-both-ways", "small-coca"])
@settings(max_examples=15)
@given(texts=st.lists(words.map(" ".join), min_size=1, max_size=4))
def test_looking_no_further_than_the_end_changes_nothing(
    small: Load, name: str, texts: list[str]
) -> None:
    model = small(name)
    found = encode_texts(model.clip, model.tokenize(texts)).double().numpy()
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(found, whole(model, texts), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "length"),
    [("small", 6), ("small-eos", 6), ("small-both-ways", 77), ("small-coca", 77)],
)
def test_a_causal_tower_looks_no_further_than_the_end(
    small: Load, name: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(name)
    tower = getattr(model.clip, "text", model.clip)
    seen: list[int] = []
    hook = tower.transformer.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].shape[1])
    )
    class_texts(model, ("red house", "tree"), ["a big {}"])
    hook.remove()
    assert seen == [length]


@pytest.mark.parametrize(
    ("names", "prompts", "message"),
    [
        (("a", "b"), ["a picture"], r"needs exactly one \{\}"),
        (("a", "b"), ["a {}", "{} and {}"], r"'\{\} and \{\}' needs exactly one \{\}"),
        (("a", "b"), ["a photo | a {}"], r"contains ' \| '.*use another character"),
        (("a", "b"), [], "no prompt is given"),
        (
            ("a", "word " * 30),
            ["a {}"],
            r"has \d+ tokens, but random-clip reads at most 24; shorten",
        ),
        (("a",), ["a {}"], "expected two classes or more, got 1"),
        ((), ["a {}"], "expected two classes or more, got 0"),
        (("a", "a"), ["a {}"], "expected different names"),
    ],
)
def test_unusable_texts_are_refused(
    model: ClipModel, names: tuple[str, ...], prompts: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        class_texts(model, names, prompts)


def test_tokens_beyond_the_vocabulary_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "c")
    path = tmp_path / "c" / "open_clip_config.json"
    table = json.loads(path.read_text())
    del table["model_cfg"]["text_cfg"]["tokenizer_kwargs"]
    path.write_text(json.dumps(table))
    model = load_open_clip(Source(f"local-dir:{tmp_path / 'c'}"))
    with pytest.raises(ConfigError, match="gives the token 49407, but the model has only 1024"):
        class_texts(model, ("circle", "square"), ["a {}"])


def test_a_text_tower_of_zeros_is_refused(small: Load) -> None:
    zeros = replace(small("small"), clip=copy.deepcopy(small("small").clip))
    for parameter in zeros.clip.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(ConfigError, match="text tower of small returns zeros, infinity or NaN"):
        class_texts(zeros, ("cat", "dog"), ["a {}"])
