"""Top-1 and probabilities by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fedclip_edge.learning.evaluation import probabilities, top1

LOGITS = np.array([[2, 1, 0], [0, 3, 1], [0, 1, 5], [9, 1, 2]], np.float32)


@pytest.mark.parametrize(
    ("labels", "share"),
    [([0, 1, 2, 0], 1.0), ([0, 1, 2, 1], 0.75), ([1, 1, 0, 1], 0.25), ([1, 2, 0, 2], 0.0)],
)
def test_the_share_of_pictures_whose_largest_logit_is_their_labels(
    labels: list[int], share: float
) -> None:
    value = top1(LOGITS, np.array(labels))
    assert value == share
    assert type(value) is float  # it goes into JSON


def test_one_picture_is_enough() -> None:
    assert top1(LOGITS[:1], np.array([0])) == 1.0


def test_a_label_that_no_logit_stands_for_is_wrong() -> None:
    assert top1(LOGITS, np.array([0, 1, 2, 7])) == 0.75


def test_without_pictures_there_is_no_accuracy() -> None:
    with pytest.raises(ValueError, match="no test pictures"):
        top1(np.zeros((0, 3), np.float32), np.zeros(0, np.int64))


def test_probabilities_are_the_softmax() -> None:
    logits = np.log(np.array([[1, 2, 1], [6, 3, 1]], np.float32))
    np.testing.assert_allclose(
        probabilities(logits), [[0.25, 0.5, 0.25], [0.6, 0.3, 0.1]], rtol=1e-6
    )
    assert probabilities(logits).dtype == np.float32


def test_large_logits_overflow_nothing() -> None:
    np.testing.assert_allclose(probabilities(np.array([[1e4, 0, -1e4]], np.float32)), [[1, 0, 0]])


def test_no_pictures_give_no_probabilities() -> None:
    assert probabilities(np.zeros((0, 3), np.float32)).shape == (0, 3)
