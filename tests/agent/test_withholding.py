"""Withholding of classes with few pictures: its laws, for all numbers of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.agent.withholding import Shared, log_withheld, share
from fedclip_edge.records import Features

C = 4
LABELS = st.lists(st.integers(0, C - 1), max_size=40)
FLOORS = st.integers(1, 12)


def numbered(labels: Sequence[int], first: int) -> Features:
    """Features whose one coordinate is the number of the picture, from `first`."""
    numbers = np.arange(first, first + len(labels), dtype=np.float32)
    return Features(numbers[:, None], np.array(labels, np.int64), "e" * 64)


def pictures(features: Features) -> dict[int, int]:
    """The label of each picture, by its number."""
    return {int(row[0]): int(label) for row, label in zip(*_arrays(features), strict=True)}


def _arrays(features: Features) -> tuple[np.ndarray, np.ndarray]:
    return features.vectors, features.labels


def shared(train: Sequence[int], validation: Sequence[int], floor: int) -> Shared:
    return share(numbered(train, 0), numbered(validation, 1000), C, floor)


@given(LABELS, LABELS, FLOORS)
def test_a_class_has_no_picture_on_a_side_or_enough(
    train: list[int], validation: list[int], floor: int
) -> None:
    made = shared(train, validation, floor)
    for side in (made.train, made.validation):
        counts = np.bincount(side.labels, minlength=C)
        assert ((counts == 0) | (counts >= floor)).all()


@given(LABELS, LABELS, FLOORS)
def test_each_class_is_sent_by_the_rule_for_its_two_sides(
    train: list[int], validation: list[int], floor: int
) -> None:
    made = shared(train, validation, floor)
    for label in range(C):
        trained, validated = train.count(label), validation.count(label)
        if trained < floor and validated < floor:
            together = trained + validated
            expected = (together if together >= floor else 0, 0)
        else:
            expected = (
                trained if trained >= floor else 0,
                validated if validated >= floor else 0,
            )
        found = [int((side.labels == label).sum()) for side in (made.train, made.validation)]
        assert tuple(found) == expected
        assert made.numbers.withheld[label] == trained + validated - sum(expected)


@given(LABELS, LABELS, FLOORS)
def test_pictures_keep_label_and_order_and_none_is_sent_twice(
    train: list[int], validation: list[int], floor: int
) -> None:
    made = shared(train, validation, floor)
    sent = [pictures(made.train), pictures(made.validation)]
    labels = {**dict(enumerate(train)), **dict(enumerate(validation, 1000))}
    assert all(labels[number] == label for side in sent for number, label in side.items())
    assert not sent[0].keys() & sent[1].keys()
    assert all(number >= 1000 for number in sent[1])
    for side in sent:
        assert list(side) == sorted(side)
    assert sum(map(len, sent)) + made.numbers.withheld.sum() == len(train) + len(validation)


@given(LABELS, LABELS)
def test_with_a_floor_of_one_nothing_changes(train: list[int], validation: list[int]) -> None:
    given_train, given_validation = numbered(train, 0), numbered(validation, 1000)
    made = share(given_train, given_validation, C, 1)
    assert made.train is given_train
    assert made.validation is given_validation
    assert not made.numbers.withheld.any()


def test_the_log_names_each_class_and_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    made = shared([0, 0, 0, 1, 2, 2], [2], 3)
    log_withheld(made.numbers, ("ant", "bee", "cat", "dog"))
    said = capsys.readouterr().out
    assert 'pictures_withheld pictures=1 min_per_class=3 classes="bee 1"' in said
