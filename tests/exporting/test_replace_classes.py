"""New classes for a bundle: the encoder does not change, and on an error nothing does."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import BundleError, ConfigError
from fedclip_edge.exporting import replace_classes
from fedclip_edge.exporting.recipe import Source
from fedclip_edge.vision.bundle import Bundle, read_bundle
from fedclip_edge.vision.encoder import open_encoder

pytestmark = pytest.mark.one_python


@pytest.fixture
def copied(clip_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clip_bundle.folder, tmp_path / "bundle"))


def contents(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_text_tower_answers_for_new_names_in_the_old_prompt(
    clip_bundle: Bundle, clip_folder: Path, copied: Path
) -> None:
    source = Source(f"local-dir:{clip_folder}")
    bundle = replace_classes.from_model(copied, ("square", "star", "circle"), source=source)
    assert bundle.classes.names == ("square", "star", "circle")
    assert bundle.classes.prompt == "a {}"
    old, new = clip_bundle.classes.vectors, read_bundle(copied).classes.vectors
    np.testing.assert_allclose(new[[2, 0]], old, atol=1e-6)
    for name in ("image_encoder.onnx", "golden.safetensors"):
        assert contents(copied)[name] == contents(clip_bundle.folder)[name]
    keys = {open_encoder(b, EncoderConfig()).feature_key for b in (bundle, clip_bundle)}
    assert len(keys) == 1


def test_another_prompt(clip_folder: Path, copied: Path) -> None:
    source = Source(f"local-dir:{clip_folder}")
    prompts = ("the {}", "one {}")
    bundle = replace_classes.from_model(copied, ("a", "b"), source=source, prompts=prompts)
    assert bundle.classes.prompt == "the {} | one {}"
    bundle = replace_classes.from_model(copied, ("c", "d"), source=source)
    assert bundle.classes.prompt == "the {} | one {}"


def test_a_bundle_of_own_weights_asks_for_them(copied: Path) -> None:
    before = contents(copied)
    with pytest.raises(ConfigError, match=r"name the weights as for the export: local-dir:FOLDER"):
        replace_classes.from_model(copied, ("a", "b"))
    assert contents(copied) == before


def test_another_model_is_refused_and_changes_nothing(copied: Path) -> None:
    before = contents(copied)
    with pytest.raises(
        ConfigError, match=r"RN50 has other weights than the model that .* was exported from"
    ):
        replace_classes.from_model(copied, ("a", "b"), source=Source("RN50", random_weights=True))
    assert contents(copied) == before


def test_vectors_for_an_encoder_whose_text_tower_is_not_known(
    random_bundle: Bundle, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(random_bundle.folder, tmp_path / "bundle"))
    np.save(tmp_path / "t.npy", np.eye(2, 16, dtype=np.float32))
    (tmp_path / "c.txt").write_text("cat\ndog\n")
    bundle = replace_classes.from_vectors(folder, tmp_path / "t.npy", tmp_path / "c.txt")
    assert bundle.classes.names == ("cat", "dog")
    assert bundle.classes.logit_scale == random_bundle.classes.logit_scale
    np.save(tmp_path / "t.npy", np.eye(2, 8, dtype=np.float32))
    with pytest.raises(ConfigError, match=r"width 8, but the features of .* have width 16"):
        replace_classes.from_vectors(folder, tmp_path / "t.npy", tmp_path / "c.txt")


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a folder"):
        replace_classes.from_model(tmp_path / "nothing", ("a", "b"))
