"""Models of open_clip: both towers in fp32, with open_clip's own settings."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
import torch
from checkout import SUPPORT
from safetensors.torch import save_file

from fedclip_edge.errors import ConfigError, ExportError
from fedclip_edge.exporting.open_clip_model import ClipModel, FeaturesAlone, load_open_clip
from fedclip_edge.exporting.recipe import Source
from fedclip_edge.exporting.weights import weights_digest
from fedclip_edge.vision.pictures import Preprocessing

pytestmark = pytest.mark.one_python
Edit = Callable[[dict[str, Any]], Any]
Load = Callable[[str], ClipModel]


@pytest.fixture(scope="module")
def model(clip_folder: Path) -> ClipModel:
    return load_open_clip(Source(f"local-dir:{clip_folder}"))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Load]:
    """`small(name)`: loads a model of small_models with random weights."""
    with small_models.registered(tmp_path):
        yield lambda name: load_open_clip(Source(name, random_weights=True))


def edited(folder: Path, to: Path, edit: Edit) -> Source:
    shutil.copytree(folder, to)
    path = to / "open_clip_config.json"
    table = json.loads(path.read_text())
    edit(table)
    path.write_text(json.dumps(table))
    return Source(f"local-dir:{to}")


def test_settings_are_open_clips(model: ClipModel) -> None:
    assert (model.name, model.pretrained) == ("random-clip", "local-dir")
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
    assert not any(p.requires_grad for p in model.clip.parameters())


def test_a_bpe_path_is_taken_from_the_folder_wherever_the_command_is_typed(
    model: ClipModel, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(clip_folder)
    here = load_open_clip(Source("local-dir:link"))
    texts = ["a circle", "umbrella"]
    assert torch.equal(here.tokenize(texts), model.tokenize(texts))
    assert int(model.tokenize(texts).max()) == 1023
    assert here.weights_sha256 == model.weights_sha256


def test_loading_leaves_logging_and_randomness_alone(clip_folder: Path, small: Load) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    load_open_clip(Source(f"local-dir:{clip_folder}"))
    small("small")
    assert torch.equal(torch.rand(1), expected)
    assert (root.handlers, root.level) == (before, level)


@pytest.mark.parametrize(
    ("name", "activation"), [("small", "gelu"), ("small-quickgelu", "quick_gelu")]
)
def test_a_name_with_random_weights(small: Load, name: str, activation: str) -> None:
    model = small(name)
    assert (model.name, model.pretrained) == (name, "random")
    assert model.activation == activation
    assert model.image_tower is model.clip.visual
    half = (0.5, 0.5, 0.5)
    assert model.preprocessing == Preprocessing(32, "squash", 32, "bilinear", half, half)


def test_random_weights_are_the_same_in_every_process(small: Load, tmp_path: Path) -> None:
    first = small("small").weights_sha256
    torch.manual_seed(99)
    assert small("small").weights_sha256 == first
    code = (
        "import sys, pathlib, small_models\n"
        "from fedclip_edge.exporting.open_clip_model import load_open_clip\n"
        "from fedclip_edge.exporting.recipe import Source\n"
        "with small_models.registered(pathlib.Path(sys.argv[1])):\n"
        "    print(load_open_clip(Source('small', random_weights=True)).weights_sha256)\n"
    )
    folder = tmp_path / "configs"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == first


def test_a_file_of_weights(small: Load, tmp_path: Path) -> None:
    state = {n: t + 0.5 for n, t in small("small").clip.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    model = load_open_clip(Source("small", str(tmp_path / "w.safetensors")))
    assert (model.name, model.pretrained) == ("small", "file")
    visual = {
        name.removeprefix("visual."): tensor
        for name, tensor in state.items()
        if name.startswith("visual.")
    }
    assert model.weights_sha256 == weights_digest(visual)
    assert model.logit_scale == pytest.approx(np.exp(0.5) / 0.07, rel=1e-3)


def test_a_tower_that_gives_tokens_as_well_gives_its_features_alone(small: Load) -> None:
    model = small("small-coca")
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        features = model.image_tower(pixels)
        theirs = model.clip.encode_image(pixels, normalize=False)
    assert isinstance(model.image_tower, FeaturesAlone)
    assert features.shape == (3, 32)
    assert torch.equal(features, theirs)
    assert model.weights_sha256 == weights_digest(model.clip.visual.state_dict())
    assert model.context_length == 76


@pytest.mark.parametrize("source", ["hf-hub:org/model", "tinny"])
def test_an_unknown_model_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="open_clip has no model"):
        load_open_clip(Source(source))


def test_missing_folder_configuration_and_weights(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        load_open_clip(Source(f"local-dir:{tmp_path / 'nowhere'}"))
    with pytest.raises(ConfigError, match=r"has no open_clip_config\.json"):
        load_open_clip(Source(f"local-dir:{tmp_path}"))
    shutil.copytree(clip_folder, tmp_path / "c")
    (tmp_path / "c" / "open_clip_model.safetensors").unlink()
    with pytest.raises(ExportError, match="cannot load .*c: Required pretrained weights"):  # noqa: RUF043
        load_open_clip(Source(f"local-dir:{tmp_path / 'c'}"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_cfg": {"text_cfg": []}}'])
def test_a_configuration_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(
        ConfigError,
        match=r"open_clip_config\.json(, line 1 .*is not valid JSON| has no model| is empty)",
    ):
        load_open_clip(Source(f"local-dir:{tmp_path}"))


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda t: t["model_cfg"].update(embed_dim=64), ExportError, "weights that fit it"),
        (lambda t: t["model_cfg"].pop("vision_cfg"), ExportError, "cannot load"),
        (lambda t: t["model_cfg"].update(nonsense=1), ExportError, "unexpected keyword"),
        (
            lambda t: t["preprocess_cfg"].update(resize_mode="longest"),
            ExportError,
            "is not supported in a bundle: resize: expected shortest or squash",
        ),
        (
            lambda t: t["model_cfg"]["text_cfg"].update(tokenizer_kwargs={"bpe_path": "no.gz"}),
            ExportError,
            r"tokenizer of .* cannot be read: .*No such file .*no\.gz",
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
        load_open_clip(Source(f"local-dir:{tmp_path / 'c'}"))
