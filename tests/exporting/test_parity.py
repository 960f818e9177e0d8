"""The parity check: a bundle is refused if its features differ too much from the model's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import BundleError, ExportError
from fedclip_edge.exporting.calibration import GatePictures
from fedclip_edge.exporting.golden import golden_vectors, noise_pixels, open_candidate
from fedclip_edge.exporting.parity import LIMITS, Parity, check, measure, of_tower
from fedclip_edge.exporting.recipe import Precision
from fedclip_edge.records import F32, ClassTexts
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.encoder import Encoder, open_encoder
from fedclip_edge.vision.picture_files import LeftOut
from fedclip_edge.vision.pictures import Preprocessing

PLAIN = Preprocessing(32, "shortest", 32, "bicubic", (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def encoder(random_bundle: Bundle) -> Encoder:
    return open_encoder(random_bundle, EncoderConfig())


@pytest.fixture(scope="module")
def texts(random_bundle: Bundle) -> ClassTexts:
    return random_bundle.classes


@pytest.fixture(scope="module")
def pictures(encoder: Encoder, texts: ClassTexts) -> GatePictures:
    """70 pictures: for all but the first 7, the label is the encoder's own top class."""
    pixels = noise_pixels(70, PLAIN)
    labels = (encoder.embed(pixels) @ texts.vectors.T).argmax(axis=1)
    labels[:7] = (labels[:7] + 1) % 3
    return GatePictures(pixels, labels, pixels[:0], LeftOut(), "drawn")


class Changed:
    """An encoder that applies `change` to the features of another encoder."""

    def __init__(self, encoder: Encoder, change: Any) -> None:
        self.encoder, self.change, self.batches = encoder, change, list[int]()

    def embed(self, pixels: F32) -> F32:
        self.batches.append(len(pixels))
        return np.asarray(self.change(self.encoder.embed(pixels)), np.float32)


def compare(
    encoder: Encoder,
    pictures: GatePictures,
    texts: ClassTexts,
    change: Any = lambda features: features,
    precision: Precision = "fp32",
) -> Parity:
    candidate: Any = Changed(encoder, change)
    return measure(candidate, encoder.embed, pictures, texts, precision)


def test_equal_features_pass_at_every_precision(
    encoder: Encoder, pictures: GatePictures, texts: ClassTexts
) -> None:
    for precision in get_args(Precision):
        parity = compare(encoder, pictures, texts, precision=precision)
        check(parity)
        assert parity.missed == ()
        assert parity.figures["largest_difference"] == 0
        assert parity.figures["neighbour_agreement"] == 1
        assert parity.zero_shot == parity.zero_shot_reference == pytest.approx(90)
        report = parity.to_json()
        assert (report["passed"], report["accepted"], report["pictures"]) == (True, False, 70)
        assert report["batches"] == "1, 5, 8"
        assert {row.passed for row in parity.rows()} == {True, None}


def test_all_pictures_in_eights_and_64_alone_and_in_fives(
    encoder: Encoder, pictures: GatePictures, texts: ClassTexts
) -> None:
    candidate: Any = Changed(encoder, lambda features: features)
    measure(candidate, encoder.embed, pictures, texts, "fp32")
    assert candidate.batches == [8] * 8 + [6] + [1] * 64 + [5] * 12 + [4]


def turned(by: float) -> Any:
    """A change that turns each feature by the angle `by` in a random direction."""

    def change(features: F32) -> F32:
        rng = np.random.default_rng(len(features))
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        aside = rng.normal(size=features.shape)
        units = features / norms
        aside -= (aside * units).sum(axis=1, keepdims=True) * units
        aside /= np.linalg.norm(aside, axis=1, keepdims=True)
        return np.asarray(norms * (np.cos(by) * units + np.sin(by) * aside), np.float32)

    return change


def last_of_five(features: F32) -> F32:
    changed = features.copy()
    if len(changed) == 5:
        changed[-1, 0] += 1e-5 * np.linalg.norm(changed[-1])
    return changed


@pytest.mark.parametrize(
    ("precision", "change", "missed"),
    [
        ("fp32", turned(1e-4), "largest difference"),
        ("fp32", lambda f: f * (1 + 3e-5), "norm, largest relative difference"),
        ("fp32", last_of_five, "across batch sizes, relative"),
        ("fp16", turned(0.01), "largest difference"),
        ("fp16", lambda f: f * 1.01, "norm"),
        ("int8", turned(1.0), "centred cosine, mean"),
        ("int8", lambda f: f * 1.2, "norm"),
        ("int8", last_of_five, "across batch sizes"),
        ("int8-weights", turned(1.0), "nearest neighbour agrees"),
        ("int8", lambda f: f[:, ::-1], "zero-shot accuracy lost, points"),
    ],
)
def test_what_differs_is_refused_with_the_figure(
    encoder: Encoder,
    pictures: GatePictures,
    texts: ClassTexts,
    precision: Precision,
    change: Any,
    missed: str,
) -> None:
    parity = compare(encoder, pictures, texts, change, precision)
    assert any(line.startswith(missed) for line in parity.missed)
    with pytest.raises(ExportError, match=f"{precision} features differ too much .*: .*{missed}.*"):
        check(parity)
    report = parity.to_json()
    assert (report["passed"], report["accepted"]) == (False, True)
    assert missed in str(report["missed"])


def test_bits_are_told_apart_from_rounding(
    encoder: Encoder, pictures: GatePictures, texts: ClassTexts
) -> None:
    def rounded(features: F32) -> F32:
        return features * np.float32(1 + 2e-7) if len(features) == 1 else features

    parity = compare(encoder, pictures, texts, rounded)
    assert not parity.bit_equal
    assert 0 < parity.figures["batch_difference"] < 1e-6
    check(parity)
    assert compare(encoder, pictures, texts).bit_equal


def test_the_drop_counts_labels_and_needs_them(
    encoder: Encoder, pictures: GatePictures, texts: ClassTexts
) -> None:
    def one_wrong(features: F32) -> F32:
        """Replace the last picture's feature by that of another class."""
        scores = features @ texts.vectors.T
        changed = features.copy()
        if len(features) == 6:  # the last batch
            changed[-1] = texts.vectors[scores[-1].argmin()] * np.linalg.norm(features[-1])
        return changed

    parity = compare(encoder, pictures, texts, one_wrong, "int8")
    assert parity.figures["zero_shot_drop"] == pytest.approx(100 / 70)
    assert parity.zero_shot_agreement == pytest.approx(69 / 70)
    unlabelled = compare(encoder, replace(pictures, labels=None), texts, one_wrong, "int8")
    assert "zero_shot_drop" not in unlabelled.figures
    assert unlabelled.zero_shot is None
    assert "zero-shot accuracy" not in [row.label for row in unlabelled.rows()]


def test_a_mean_that_all_features_share_hides_nothing(
    encoder: Encoder, pictures: GatePictures, texts: ClassTexts
) -> None:
    """The shared mean makes raw cosines exceed 0.999, even for completely different features."""

    def near(pixels: F32) -> F32:
        return encoder.embed(pixels) + np.float32(500)

    candidate: Any = Changed(encoder, lambda f: f[:, ::-1] + np.float32(500))
    parity = measure(candidate, near, pictures, texts, "int8")
    assert parity.figures["centred_cosine_mean"] < 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[:, :8], r"features \[70, 8\], but the original model returns \[70, 16\]"),
    ],
)
def test_features_of_another_width_are_refused(
    encoder: Encoder, pictures: GatePictures, texts: ClassTexts, change: Any, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        compare(encoder, pictures, texts, change)


def test_nan_is_never_accepted(
    encoder: Encoder, pictures: GatePictures, texts: ClassTexts, make_encoder: Any
) -> None:
    broken = open_candidate(make_encoder(scale=np.inf), PLAIN, "mine", "fp32")
    with pytest.raises(ExportError, match="mine returned NaN or infinity"):
        measure(broken, encoder.embed, pictures, texts, "fp16")
    for value in (np.nan, 0):

        def damaged(pixels: F32, times: float = value) -> F32:
            return encoder.embed(pixels) * np.float32(times)

        with pytest.raises(ExportError, match="the original model returns NaN, infinity or 0"):
            measure(encoder, damaged, pictures, texts, "fp32")


def test_every_precision_has_limits_and_fp32_the_tightest() -> None:
    assert set(LIMITS) == set(get_args(Precision))
    bounds = {p: {limit.figure: limit.bound for limit in LIMITS[p]} for p in LIMITS}
    norms = [bounds[p]["norm_difference"] for p in ("fp32", "fp16", "int8-weights", "int8")]
    assert norms == sorted(norms)
    assert {bounds[p]["batch_difference"] for p in bounds} == {1e-6}


def test_a_tower_is_a_reference() -> None:
    tower = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    features = of_tower(tower)(np.ones((2, 3, 2, 2), np.float32))
    assert features.shape == (2, 4)
    assert features.dtype == np.float32


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
    with pytest.raises(ExportError, match="the input pixel_values of mine"):
        open_candidate(make_encoder(side=16), PLAIN, "mine", "fp32")
    broken = open_candidate(make_encoder(scale=np.inf), PLAIN, "mine", "fp32")
    with pytest.raises(ExportError, match="mine returned NaN"):
        golden_vectors(broken, PLAIN)


def test_a_reference_that_fails_is_an_export_error(
    encoder: Encoder, pictures: GatePictures, texts: ClassTexts
) -> None:
    failing: Any = Changed(encoder, lambda _: (_ for _ in ()).throw(BundleError("gave NaN")))
    with pytest.raises(ExportError, match="gave NaN"):
        measure(encoder, failing.embed, pictures, texts, "fp16")
