"""A folder that open_clip saved: both towers in fp32, and open_clip's own settings."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedclip_edge.errors import ConfigError, ExportError
from fedclip_edge.exporting.open_clip_model import ClipModel, load_open_clip, weights_digest
from fedclip_edge.exporting.texts import class_texts
from fedclip_edge.vision.pictures import Preprocessing

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def model(clip_folder: Path) -> ClipModel:
    return load_open_clip(f"local-dir:{clip_folder}")


def edited(folder: Path, to: Path, edit: Edit) -> str:
    shutil.copytree(folder, to)
    path = to / "open_clip_config.json"
    table = json.loads(path.read_text())
    edit(table)
    path.write_text(json.dumps(table))
    return f"local-dir:{to}"


def test_settings_are_open_clips(model: ClipModel) -> None:
    assert model.name == "random-clip"
    assert model.preprocessing == Preprocessing(
        64, "shortest", 64, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    )
    assert model.activation == "relu"
    assert model.context_length == 24
    assert model.vocab_size == 1024
    assert model.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)


def test_weights_stored_in_half_are_computed_in_fp32(model: ClipModel) -> None:
    assert {p.dtype for p in model.clip.parameters()} == {torch.float32}
    assert not model.image_tower.training


def test_a_bpe_path_is_taken_from_the_folder_wherever_the_command_is_typed(
    model: ClipModel, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(clip_folder)
    here = load_open_clip("local-dir:link")
    texts = ["a circle", "umbrella"]
    assert torch.equal(here.tokenize(texts), model.tokenize(texts))
    assert int(model.tokenize(texts).max()) == 1023
    assert here.weights_sha256 == model.weights_sha256


def test_weights_digest_sees_name_dtype_shape_and_bytes() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    assert weights_digest(state) == weights_digest(dict(reversed(state.items())))
    others: list[dict[str, torch.Tensor]] = [
        {"a": torch.zeros(2, 3), "c": torch.ones(2)},
        {"a": torch.zeros(3, 2), "b": torch.ones(2)},
        {"a": torch.zeros(2, 3), "b": torch.tensor([1.0, 1.0000001])},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(2)},
    ]
    assert len({weights_digest(s) for s in (state, *others)}) == 5


def test_loading_leaves_the_programs_logging_alone(clip_folder: Path) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    load_open_clip(f"local-dir:{clip_folder}")
    assert (root.handlers, root.level) == (before, level)


def test_texts_are_the_text_towers_unit_vectors(model: ClipModel) -> None:
    texts = class_texts(model, ("circle", "blue square"), "a picture of a {}")
    tokens = model.tokenize(["a picture of a circle", "a picture of a blue square"])
    with torch.no_grad():
        theirs = model.clip.encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(texts.vectors, theirs, atol=1e-6)
    assert texts.names == ("circle", "blue square")
    assert texts.logit_scale == model.logit_scale
    assert texts.prompt == "a picture of a {}"


def test_many_classes_are_the_same_as_few(model: ClipModel) -> None:
    names = tuple(f"thing {i}" for i in range(300))
    many, few = class_texts(model, names, "a {}"), class_texts(model, names[-2:], "a {}")
    np.testing.assert_allclose(many.vectors[-2:], few.vectors, atol=1e-6)


@pytest.mark.parametrize(
    ("names", "prompt", "message"),
    [
        (("a", "b"), "a picture", r"needs \{\} once"),
        (("a", "b"), "{} and {}", r"needs \{\} once"),
        (("a", "word " * 30), "a {}", r"has \d+ tokens, and random-clip reads 24; shorten"),
        (("a",), "a {}", "expected two classes or more, got 1"),
        ((), "a {}", "expected two classes or more, got 0"),
        (("a", "a"), "a {}", "expected distinct ones"),
    ],
)
def test_unusable_texts_are_refused(
    model: ClipModel, names: tuple[str, ...], prompt: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        class_texts(model, names, prompt)


def test_tokens_beyond_the_vocabulary_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    source = edited(
        clip_folder, tmp_path / "c", lambda t: t["model_cfg"]["text_cfg"].pop("tokenizer_kwargs")
    )
    with pytest.raises(ConfigError, match="numbers tokens up to 49407, but the model knows 1024"):
        class_texts(load_open_clip(source), ("circle", "square"), "a {}")


@pytest.mark.parametrize("source", ["ViT-B-32", "hf-hub:org/model", "", "tinny"])
def test_another_source_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="is no model that can be exported; write tiny, or local"):
        load_open_clip(source)


def test_missing_folder_configuration_and_weights(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        load_open_clip(f"local-dir:{tmp_path / 'nowhere'}")
    with pytest.raises(ConfigError, match=r"holds no open_clip_config\.json"):
        load_open_clip(f"local-dir:{tmp_path}")
    shutil.copytree(clip_folder, tmp_path / "c")
    (tmp_path / "c" / "open_clip_model.safetensors").unlink()
    with pytest.raises(ExportError, match="cannot load .*c: Required pretrained weights"):  # noqa: RUF043
        load_open_clip(f"local-dir:{tmp_path / 'c'}")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_configuration_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"open_clip_config\.json (cannot be read|has no model)"):
        load_open_clip(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda t: t["model_cfg"].update(embed_dim=64), ExportError, "weights that fit it"),
        (lambda t: t["model_cfg"].pop("vision_cfg"), ExportError, "cannot load"),
        (lambda t: t["model_cfg"].update(nonsense=1), ExportError, "unexpected keyword"),
        (
            lambda t: t["preprocess_cfg"].update(resize_mode="longest"),
            ExportError,
            "preprocessing that is not known: resize: expected shortest or squash",
        ),
        (
            lambda t: t["model_cfg"]["text_cfg"].update(tokenizer_kwargs={"bpe_path": "no.gz"}),
            ExportError,
            r"No such file .*no\.gz",
        ),
    ],
)
def test_a_configuration_that_does_not_fit(
    clip_folder: Path, tmp_path: Path, edit: Edit, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_open_clip(edited(clip_folder, tmp_path / "c", edit))


def test_truncated_weights(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "c")
    weights = tmp_path / "c" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ExportError, match="open_clip cannot load"):
        load_open_clip(f"local-dir:{tmp_path / 'c'}")
