"""The lazy encoder: not loaded before it is needed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import BundleError, ConfigError
from fedclip_edge.vision import encoder
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.encoder import open_encoder
from fedclip_edge.vision.lazy_encoder import LazyEncoder


def test_it_is_the_encoder_that_would_be_opened(random_bundle: Bundle) -> None:
    loaded = open_encoder(random_bundle, EncoderConfig())
    waiting = LazyEncoder(random_bundle, EncoderConfig())
    assert (waiting.feature_key, waiting.dim) == (loaded.feature_key, loaded.dim)
    pixels = random_bundle.golden().pixels
    assert np.array_equal(waiting.embed(pixels), loaded.embed(pixels))


def test_it_is_loaded_by_the_first_pictures_and_once(
    random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Bundle] = []

    def spy(bundle: Bundle, config: EncoderConfig) -> encoder.Encoder:
        opened.append(bundle)
        return open_encoder(bundle, config)

    monkeypatch.setattr(encoder, "open_encoder", spy)
    waiting = LazyEncoder(random_bundle, EncoderConfig())
    assert waiting.feature_key
    assert opened == []
    for _ in range(2):
        waiting.embed(random_bundle.golden().pixels)
    assert opened == [random_bundle]


def test_what_is_wrong_is_said_when_it_is_needed(random_bundle: Bundle) -> None:
    waiting = LazyEncoder(random_bundle, replace(EncoderConfig(), provider="cuda"))
    assert waiting.feature_key != LazyEncoder(random_bundle, EncoderConfig()).feature_key
    with pytest.raises(ConfigError, match="cuda"):
        waiting.embed(random_bundle.golden().pixels)


def test_a_bundle_that_was_replaced_meanwhile_is_not_used(
    random_bundle: Bundle, tmp_path: Path
) -> None:
    """Otherwise the features of the new encoder are stored as those of the old one."""
    shutil.copytree(random_bundle.folder, tmp_path / "bundle")
    bundle = replace(random_bundle, folder=tmp_path / "bundle")
    lazy = LazyEncoder(bundle, EncoderConfig())
    manifest = tmp_path / "bundle" / "manifest.json"
    old = str(bundle.manifest.files["image_encoder.onnx"])
    manifest.write_text(manifest.read_text().replace(old, "1" * 64))
    with pytest.raises(BundleError, match="was replaced while it was in use; restart"):
        lazy.embed(np.zeros((1, 3, 32, 32), np.float32))
