from __future__ import annotations

import numpy as np
import pytest
from checkout import SHARED
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.agent.review import UNLIKELY
from fedclip_edge.learning.evaluation import probabilities
from fedclip_edge.learning.held_out import folds_of, held_out_logits
from fedclip_edge.records import ClassTexts, Features

DIM, CLASSES = 12, 4


def texts() -> ClassTexts:
    vectors = np.random.default_rng(7).normal(size=(CLASSES, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = tuple(f"class {label}" for label in range(CLASSES))
    return ClassTexts(names, vectors.astype(np.float32), 100.0, "unknown")


def pictures(seed: int, count: int) -> Features:
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    noise = random.normal(size=(count, DIM))
    vectors = (texts().vectors[labels] + 0.3 * noise).astype(np.float32)
    return Features(vectors, labels.astype(np.int64), "encoder")


@given(st.integers(0, 10_000), st.integers(0, 29), st.integers(0, CLASSES - 1))
def test_a_prediction_does_not_depend_on_the_label_of_its_picture(
    seed: int, index: int, other: int
) -> None:
    features = pictures(seed, 30)
    folds = np.arange(30) % 5
    labels = features.labels.copy()
    labels[index] = other
    changed = Features(features.vectors, labels, features.encoder_id)
    before = held_out_logits(features, texts(), folds)
    after = held_out_logits(changed, texts(), folds)
    its_fold = folds == folds[index]
    np.testing.assert_array_equal(before[its_fold], after[its_fold])


@given(st.integers(0, 10_000))
def test_the_order_of_the_pictures_changes_nothing(seed: int) -> None:
    features, folds = pictures(seed, 30), np.arange(30) % 5
    order = np.random.default_rng(seed).permutation(30)
    shuffled = Features(features.vectors[order], features.labels[order], features.encoder_id)
    np.testing.assert_allclose(
        held_out_logits(features, texts(), folds)[order],
        held_out_logits(shuffled, texts(), folds[order]),
        rtol=1e-5,
        atol=1e-5,
    )


def test_without_other_pictures_it_is_zero_shot() -> None:
    features = pictures(0, 1)
    cosine = features.vectors / np.linalg.norm(features.vectors) @ texts().vectors.T
    found = held_out_logits(features, texts(), np.zeros(1, np.int64))
    np.testing.assert_allclose(found, cosine * texts().logit_scale, rtol=1e-4)


def test_no_picture_gives_no_prediction() -> None:
    empty = Features(np.zeros((0, DIM), np.float32), np.zeros(0, np.int64), "encoder")
    assert held_out_logits(empty, texts(), np.zeros(0, np.int64)).shape == (0, CLASSES)


def test_equal_hashes_are_in_the_same_fold() -> None:
    hashes = [f"{number:064x}" for number in (7, 2**240, 7)]
    folds = folds_of(hashes, 5)
    assert folds[0] == folds[2]
    assert folds.max() < 5


@pytest.mark.one_python
@pytest.mark.skipif(not SHARED.is_dir(), reason="the CLIP features are in ../shared/data")
@pytest.mark.parametrize("name", ["foodL", "imagenetL"])
def test_most_flipped_labels_are_unlikely_on_features_of_clip(name: str) -> None:
    """One label of twenty is flipped; pictures with other labels are doubted far less often."""
    with np.load(SHARED / "clip" / f"{name}.npz") as file:
        vectors, labels = file["train_x"].astype(np.float32), file["train_y"]
        unit = file["class_texts"].astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    classes = ClassTexts(tuple(f"class {i}" for i in range(len(unit))), unit, 100.0, "unknown")
    random = np.random.default_rng(0)
    flipped = np.zeros(len(labels), bool)
    flipped[random.choice(len(labels), len(labels) // 20, replace=False)] = True
    said = np.where(
        flipped, (labels + random.integers(1, len(unit), len(labels))) % len(unit), labels
    )
    folds = random.permutation(len(labels)) % 5
    likely = probabilities(held_out_logits(Features(vectors, said, "clip"), classes, folds))
    doubted = likely[np.arange(len(said)), said] < UNLIKELY
    assert doubted[flipped].mean() >= 0.9
    assert doubted[~flipped].mean() <= 0.1
