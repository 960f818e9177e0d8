"""No bundle whose ONNX features differ from PyTorch's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedclip_edge.config import EncoderConfig
from fedclip_edge.errors import ExportError
from fedclip_edge.exporting.golden import golden_vectors, noise_pixels, open_candidate
from fedclip_edge.exporting.parity import TOLERANCE, check_parity
from fedclip_edge.records import F32
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.encoder import Encoder, open_encoder
from fedclip_edge.vision.pictures import Preprocessing

PLAIN = Preprocessing(32, "shortest", 32, "bicubic", (0.5,) * 3, (0.25,) * 3)


class Tower(torch.nn.Module):
    """PyTorch features that are the encoder's own, but for `change`."""

    def __init__(self, encoder: Encoder, change: Any = lambda features: features) -> None:
        super().__init__()
        self.encoder, self.change, self.batches = encoder, change, list[int]()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(pixels))
        features: F32 = self.encoder.embed(pixels.numpy())
        return torch.from_numpy(np.ascontiguousarray(self.change(features), np.float32))


@pytest.fixture
def encoder(random_bundle: Bundle) -> Encoder:
    return open_encoder(random_bundle, EncoderConfig())


def test_equal_features_pass_with_a_report(encoder: Encoder) -> None:
    tower = Tower(encoder, lambda f: f * (1 + 3e-6))
    report = check_parity(encoder, tower, PLAIN)
    assert report["tolerance"] == TOLERANCE == 1e-5
    assert report["worst_relative"] == pytest.approx(3e-6, rel=0.1)
    assert report["pictures"] == sum(tower.batches) == 16
    assert tower.batches == [1, 2, 5, 8]


def last_only(features: F32) -> F32:
    changed = features.copy()
    if len(changed) == 8:
        changed[-1, 0] += 1e-4 * np.linalg.norm(changed[-1])
    return changed


@pytest.mark.parametrize(
    ("change", "figure"),
    [
        (lambda f: f * (1 + 2e-5), "2e-05"),  # the norm alone
        (last_only, "0.0001"),  # one number of one picture of one batch size
        (lambda f: f[:, ::-1], "1"),  # another order
        (lambda f: f * np.nan, "inf"),
    ],
)
def test_different_features_are_refused_with_the_figure(
    encoder: Encoder, change: Any, figure: str
) -> None:
    message = f"differ from PyTorch's by {figure}.* more than 1e-05; nothing was written"
    with pytest.raises(ExportError, match=message):
        check_parity(encoder, Tower(encoder, change), PLAIN)


def test_features_of_another_width_are_refused(encoder: Encoder) -> None:
    with pytest.raises(ExportError, match=r"\[1, 16\] where PyTorch gives \[1, 8\]"):
        check_parity(encoder, Tower(encoder, lambda f: f[:, :8]), PLAIN)


def test_noise_is_seeded_spans_the_range_and_looks_like_pictures() -> None:
    pixels = noise_pixels(6, PLAIN)
    assert pixels.shape == (6, 3, 32, 32)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, noise_pixels(6, PLAIN))
    assert not np.array_equal(pixels, noise_pixels(6, PLAIN, seed=1))
    levels = pixels * 0.25 + 0.5
    assert levels.min() == 0
    assert levels.max() == 1
    odd = replace(PLAIN, image_size=37, resize_px=40)
    assert noise_pixels(1, odd).shape == (1, 3, 37, 37)


def test_golden_vectors_are_the_encoders(encoder: Encoder) -> None:
    golden = golden_vectors(encoder, PLAIN)
    assert golden.pixels.shape == (4, 3, 32, 32)
    np.testing.assert_array_equal(golden.features, encoder.embed(golden.pixels))


def test_a_candidate_that_does_not_fit_is_an_export_error(make_encoder: Any) -> None:
    with pytest.raises(ExportError, match="mine takes pixel_values"):
        open_candidate(make_encoder(side=16), PLAIN, "mine")
    broken = open_candidate(make_encoder(scale=np.inf), PLAIN, "mine")
    with pytest.raises(ExportError, match="mine gave NaN"):
        golden_vectors(broken, PLAIN)
