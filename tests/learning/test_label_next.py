from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.learning.label_next import NEAR, label_next
from fedclip_edge.records import F32

DIM, CLASSES = 8, 3
NOTHING: F32 = np.zeros((0, DIM), np.float32)


def scene(seed: int, count: int) -> tuple[F32, F32]:
    """Features and probabilities of pictures that are all different."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, DIM)).astype(np.float32)
    shares = random.dirichlet(np.ones(CLASSES), count).astype(np.float32)
    return vectors, shares


@given(st.integers(0, 10_000), st.integers(0, 20), st.integers(1, 30))
def test_each_picture_is_chosen_once_and_no_near_duplicate_with_it(
    seed: int, count: int, most: int
) -> None:
    vectors, shares = scene(seed, count)
    doubled = np.concatenate([vectors, vectors * 1.5])
    chosen = label_next(doubled, NOTHING, np.concatenate([shares, shares]), most)
    assert len(chosen) <= min(most, count)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    picked = [one.index % count for one in chosen]
    assert len(set(picked)) == len(picked)
    cosines = unit[picked] @ unit[picked].T
    np.fill_diagonal(cosines, -1)
    assert (cosines < NEAR + 1e-6).all()


@given(st.integers(0, 10_000))
def test_it_is_always_the_same_choice(seed: int) -> None:
    vectors, shares = scene(seed, 20)
    assert label_next(vectors, NOTHING, shares, 9) == label_next(vectors, NOTHING, shares, 9)


def test_the_least_sure_come_first_and_every_third_is_the_least_like_the_others() -> None:
    vectors, shares = np.eye(6, DIM, dtype=np.float32), np.full((6, CLASSES), 0.2, np.float32)
    shares[:, 0] = 0.6
    shares[4] = (0.3, 0.4, 0.3)
    shares[2] = (0.45, 0.1, 0.45)
    known = np.zeros((1, DIM), np.float32)
    known[0, :5] = 1
    chosen = label_next(vectors, known, shares, 3)
    assert [one.index for one in chosen] == [2, 4, 5]
    assert [one.reason for one in chosen] == ["unsure", "unsure", "unlike"]
    assert chosen[2].nearest == 0


def test_each_class_has_its_share_of_the_list() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(40, DIM)).astype(np.float32)
    shares = np.tile(np.array([0.4, 0.35, 0.25], np.float32), (40, 1))
    shares[20:] = (0.1, 0.1, 0.8)  # surer, of another class
    named = [int(shares[one.index].argmax()) for one in label_next(vectors, NOTHING, shares, 6)]
    assert named.count(2) >= 2


def test_a_near_duplicate_of_a_labelled_picture_is_not_chosen() -> None:
    vectors, shares = scene(0, 5)
    chosen = label_next(vectors, vectors[:3], shares, 5)
    assert {one.index for one in chosen} == {3, 4}


def test_features_of_zeros_and_nothing_at_all() -> None:
    zeros = np.zeros((3, DIM), np.float32)
    assert len(label_next(zeros, NOTHING, scene(0, 3)[1], 5)) == 3
    assert label_next(NOTHING, NOTHING, np.zeros((0, CLASSES), np.float32), 5) == []


def test_rows_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="3 features, but probabilities of 2"):
        label_next(scene(0, 3)[0], NOTHING, scene(0, 2)[1], 5)
