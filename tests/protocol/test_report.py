"""Reports that no device can make are refused, and those of every evaluation pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from drawn_records import report
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.errors import PeerError
from fedclip_edge.learning.evaluation import evaluate
from fedclip_edge.protocol.report import PICTURES_MAX, Report, check_possible


@given(st.integers(1, 300), st.integers(1, 12), st.integers(0, 2**32 - 1), st.booleans())
def test_what_a_device_measures_passes(
    pictures: int, classes: int, seed: int, is_good: bool
) -> None:
    """With the metrics of an agent's report, for two models and few or many classes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, pictures)
    accuracy, per_class = dict[str, float](), dict[str, tuple[float | None, ...]]()
    for name in ("zero_shot", "federated"):
        logits = random.normal(size=(pictures, classes)).astype(np.float32)
        logits[np.arange(pictures), labels] += 3 if is_good else 0
        found = evaluate(logits, labels)
        accuracy |= {name: found.top1, f"{name}_f1": found.macro_f1, f"{name}_ece": found.ece}
        per_class[name] = found.said
    made = report(accuracy=accuracy, per_class=per_class, test_pictures=pictures)
    check_possible(made)
    check_possible(replace(made, per_class={}))
    check_possible(Report(**made.to_json()))


@given(st.integers(1, PICTURES_MAX), st.floats(0, 1))
def test_every_fraction_of_any_number_of_pictures_passes(pictures: int, share: float) -> None:
    right = int(share * pictures)
    check_possible(report(accuracy={"federated": right / pictures}, test_pictures=pictures))


@given(st.integers(1, 10**5), st.integers(0, 10**5 - 1), st.floats(0.01, 0.99))
def test_what_lies_between_two_fractions_is_refused(
    pictures: int, right: int, between: float
) -> None:
    share = min((right % pictures + between) / pictures, 1.0)
    with pytest.raises(PeerError, match="which is no fraction of"):
        check_possible(report(accuracy={"federated": share}, test_pictures=pictures))


def test_an_accuracy_of_every_picture_on_the_device_is_not_one_of_the_test_pictures() -> None:
    check_possible(report(accuracy={"zero_shot_all": 1 / 3, "federated": 0.5}, test_pictures=2))


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "a share of unknown pictures that is none": (
        {"accuracy": {"federated": 0.5, "unknown": 0.3}, "test_pictures": 8},
        "figure unknown is 0.3, which is no fraction of 8 test pictures",
    ),
    "accuracy without pictures": (
        {"accuracy": {"federated": 1.0}, "test_pictures": 0},
        "figure federated is 1, which is no fraction of 0 test pictures",
    ),
    "pictures": (
        {"train_pictures": 2**62, "accuracy": {}},
        "train_pictures is 4611686018427387904, limit 1000000000",
    ),
    "test pictures": ({"test_pictures": 10**9 + 1, "accuracy": {}}, "test_pictures is 1000000001"),
    "more right than in any class": (
        {
            "accuracy": {"federated": 1.0},
            "per_class": {"federated": (0.5, None, 0.9)},
            "test_pictures": 20,
        },
        "accuracy federated is 1, but its classes have accuracies from 0.5 to 0.9",
    ),
    "fewer right than in any class": (
        {
            "accuracy": {"federated": 0.25},
            "per_class": {"federated": (0.5, None, 0.9)},
            "test_pictures": 20,
        },
        "accuracy federated is 0.25, but",
    ),
    "more classes than pictures": (
        {
            "accuracy": {"federated": 0.5},
            "per_class": {"federated": (0.0, 1.0, 0.5)},
            "test_pictures": 2,
        },
        "3 classes with test pictures, but there are 2 test pictures",
    ),
    "other classes for each model": (
        {
            "accuracy": {"federated": 0.5, "zero_shot": 0.5},
            "per_class": {"federated": (0.5, None), "zero_shot": (None, 0.5)},
            "test_pictures": 2,
        },
        "other classes with test pictures for each model",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_in_words(lie: str) -> None:
    changes, message = LIES[lie]
    with pytest.raises(PeerError, match=message):
        check_possible(report(**changes))


def test_the_four_digits_of_a_class_may_be_below_the_accuracy() -> None:
    """All three test pictures are of one class; its accuracy is rounded, and the whole is not."""
    accuracy, per_class = {"federated": 1 / 3}, {"federated": (0.3333, None)}
    check_possible(report(accuracy=accuracy, per_class=per_class, test_pictures=3))
