"""Accuracy figures: computed by hand, and independent of any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_memory import class_texts, features

from fedclip_edge.learning.evaluation import (
    BINS,
    Evaluation,
    evaluate,
    harmonic_mean,
    over_fleet,
    probabilities,
    top1,
)
from fedclip_edge.learning.local import measure
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.records import ClassTexts, Features

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
    assert type(value) is float  # it is written to JSON


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


# --- a device ------------------------------------------------------------------------------------


def test_the_figures_of_a_device_by_hand() -> None:
    """Predictions a, b, c, a for the labels a, b, b, a, with four classes."""
    logits = np.array([[2, 1, 0, 0], [0, 3, 1, 0], [0, 1, 5, 0], [9, 1, 2, 0]], np.float32)
    found = evaluate(logits, np.array([0, 1, 1, 0]))
    assert found.pictures == 4
    assert found.top1 == 0.75
    assert found.per_class == (1.0, 0.5, None, None)
    # F1: a 1, b 2 * 1 / (2 + 1), c (predicted, but never a label) 0; d does not occur
    assert found.macro_f1 == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_calibration_error_by_hand() -> None:
    """Two pictures with confidence 0.9, one of them right; two with 0.6, both right."""
    sure = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]], np.float32))
    found = evaluate(sure, np.array([0, 1, 0, 1]))
    assert found.ece == pytest.approx((2 * abs(0.5 - 0.9) + 2 * abs(1 - 0.6)) / 4, abs=1e-6)


def test_a_probability_on_an_edge_is_of_the_bin_below() -> None:
    """9/15 and a slightly smaller value share a bin, where errors of opposite sign cancel."""
    edge = 9 / BINS
    shares = np.array([[edge, 1 - edge], [edge - 0.01, 1 - edge + 0.01]])
    found = evaluate(np.log(shares).astype(np.float32), np.array([0, 1]))
    assert found.ece == pytest.approx(abs(0.5 - (edge - 0.005)), abs=1e-6)


def test_certainty_that_is_right_has_no_calibration_error() -> None:
    assert evaluate(np.eye(3, dtype=np.float32) * 1000, np.arange(3)).ece == 0


def test_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="labels: expected 0 to 2, got 0 to 3"):
        evaluate(LOGITS, np.array([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="no test pictures"):
        evaluate(np.zeros((0, 3), np.float32), np.zeros(0, np.int64))


def test_what_a_report_says_per_class_is_short() -> None:
    found = evaluate(np.zeros((3, 2), np.float32), np.array([0, 1, 1]))
    assert found.said == (1.0, 0.0)
    shares = tuple(n / 3000 for n in range(2000))
    assert Evaluation(1, 1.0, 1.0, 0.0, shares).said[1] == 0.0003
    assert Evaluation(1, 1.0, 1.0, 0.0, (*shares, 0.5)).said == ()


@given(st.permutations(range(5)), st.integers(0, 2**32))
def test_the_order_of_the_classes_changes_no_figure(order: list[int], seed: int) -> None:
    """Permuting labels and texts together gives the same figures."""
    names = ("ant", "bee", "cat", "dog", "elk")
    classes = class_texts(names)
    test = features(30, seed, classes, noise=0.9)
    there = np.array(order)  # the new place of each class
    back = np.argsort(there)
    moved = ClassTexts(tuple(names[i] for i in back), classes.vectors[back], 100.0, classes.prompt)
    one = measure(zeroshot.MODEL, test, classes)
    other = measure(
        zeroshot.MODEL, Features(test.vectors, there[test.labels], test.encoder_id), moved
    )
    assert (one.top1, one.macro_f1) == (other.top1, other.macro_f1)
    assert one.ece == pytest.approx(other.ece, abs=1e-6)  # softmax sums in the order of the classes
    assert one.per_class == tuple(other.per_class[i] for i in there)


def test_texts_permuted_apart_from_the_labels_are_caught_by_the_digest() -> None:
    classes = class_texts(("ant", "bee", "cat"))
    apart = ClassTexts(classes.names, classes.vectors[[1, 0, 2]], 100.0, classes.prompt)
    renamed = ClassTexts(("bee", "ant", "cat"), classes.vectors, 100.0, classes.prompt)
    assert len({classes.digest, apart.digest, renamed.digest}) == 3


# --- a fleet -------------------------------------------------------------------------------------


def test_a_fleets_figures_by_hand() -> None:
    found = over_fleet([Evaluation(10, 0.8, 0.7, 0.1, ()), Evaluation(30, 0.4, 0.3, 0.3, ())])
    assert found.pictures == 40
    assert found.weighted == pytest.approx(0.5)
    assert found.mean == pytest.approx(0.6)
    assert found.worst == 0.4
    assert found.macro_f1 == pytest.approx(0.5)
    assert found.ece == pytest.approx(0.2)


def test_the_harmonic_mean_of_base_and_new() -> None:
    assert harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)
    assert harmonic_mean(0.0, 1.0) == 0
