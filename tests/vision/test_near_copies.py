"""Counts of pictures that look almost like another one."""

from __future__ import annotations

import numpy as np
import pytest

from fedclip_edge.vision.near_copies import near_copies

COMMON = np.random.default_rng(0).normal(size=64) * 20  # what all features of an encoder share


def features(count: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(count, 64)) + COMMON
    return drawn.astype(np.float32)


def test_frames_of_one_event_are_counted_and_different_pictures_are_not() -> None:
    train, test = features(300, 1), features(700, 2)
    cosines = train @ test.T / np.linalg.norm(train, axis=1)[:, None] / np.linalg.norm(test, axis=1)
    assert cosines.min() > 0.97  # as they are, all look alike
    assert near_copies(test, train) == 0
    frames = train[:40] + 0.05 * (features(40, 3) - COMMON.astype(np.float32))
    assert near_copies(np.concatenate([test, frames]), train) == 40


@pytest.mark.parametrize(("some", "others"), [(0, 3), (3, 0), (0, 0), (1, 1)])
def test_few_pictures(some: int, others: int) -> None:
    assert near_copies(features(some, 1), features(others, 1)) == 0


def test_zeros_are_no_copies() -> None:
    assert near_copies(np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32)) == 0
