"""Weights and picture counts of updates: honest ones pass, and larger ones are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import class_texts, features

from fedclip_edge.errors import PeerError
from fedclip_edge.learning import methods
from fedclip_edge.learning.method import LocalTask, Traits
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.learning.update_check import check_update
from fedclip_edge.records import Features, Plan, Update

CLASSES = class_texts(("ant", "bee", "cat"))
DIM = CLASSES.vectors.shape[1]
TRAIN, VALIDATION = features(40, 0, CLASSES), features(30, 1, CLASSES)
DECLARED = 70
WEIGHED = ("by pictures", "by pictures, capped", "facmic")
PLANS = {
    **{name: Plan(name) for name in methods.names()},
    "by pictures": Plan("linear", {"weighting": "pictures"}),
    "by pictures, capped": Plan("linear", {"weighting": "pictures"}, max_weight=7),
    "median": Plan("linear", strategy="median"),
}


def made(plan: Plan, train: Features = TRAIN, validation: Features = VALIDATION) -> Update:
    model = methods.initial(plan, CLASSES, DIM)
    return methods.fit(LocalTask(plan, model, train, validation, CLASSES, 1))


@pytest.mark.parametrize("name", PLANS)
def test_what_a_device_makes_passes(name: str) -> None:
    plan = PLANS[name]
    nothing = Features(TRAIN.vectors[:0], TRAIN.labels[:0], TRAIN.encoder_id)
    check_update(plan, made(plan), DECLARED)
    check_update(plan, made(plan))
    check_update(plan, made(plan, nothing, nothing), 0)


def heavier(update: Update) -> Update:
    """The update with one picture more in its weight."""
    return replace(update, weight=update.weight + 1)


@pytest.mark.parametrize("name", PLANS)
def test_a_heavier_one_is_refused(name: str) -> None:
    with pytest.raises(PeerError, match="the update's weight"):
        check_update(PLANS[name], heavier(made(PLANS[name])), 40 if name in WEIGHED else DECLARED)


LIES: dict[str, tuple[Plan, Callable[[Update], Update], int, str]] = {
    "above what was declared": (
        PLANS["by pictures"],
        lambda update: update,
        39,
        "weight is 40, but the device declared 39 pictures",
    ),
    "training sums": (
        PLANS["ridge"],
        lambda update: update,
        69,
        "the sums are of 40 training and 30 validation pictures",
    ),
    "validation sums": (
        PLANS["gda"],
        lambda update: update,
        69,
        "the device declared 69 pictures",
    ),
    "impossible sums": (PLANS["ridge"], heavier, DECLARED, "its counts are 70 pictures"),
    "above the plan": (
        PLANS["by pictures, capped"],
        heavier,
        DECLARED,
        "weight 8 is above the plan's max_weight 7",
    ),
    "a frozen model": (
        PLANS["linear"],
        lambda update: replace(update, weight=2**20),
        DECLARED,
        "weight is 1048576; the plan gives every device the weight 1",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_in_words(lie: str) -> None:
    plan, change, declared, message = LIES[lie]
    with pytest.raises(PeerError, match=message):
        check_update(plan, change(made(plan)), declared)


@given(st.integers(1, 60))
@settings(max_examples=20)
def test_a_device_lowers_its_weight_to_the_plans(most: int) -> None:
    """The mean over the fleet then has the same change, with less weight."""
    whole = made(PLANS["by pictures"])
    plan = replace(PLANS["by pictures"], max_weight=most)
    update = made(plan)
    assert update.weight == min(40, most)
    check_update(plan, update, DECLARED)
    for name, term in update.delta.items():
        expected = whole.delta[name] / whole.weight
        assert np.allclose(term / update.weight, expected, rtol=1e-5, atol=1e-9)


def test_a_method_of_your_own_has_any_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """`methods.register` adds one; nothing is known about its options or its sums."""
    own = replace(zeroshot.METHOD, name="heavy", traits=Traits(is_averaged=True))
    monkeypatch.setitem(methods._METHODS, "heavy", own)
    check_update(Plan("heavy"), Update("sum", 9, {"a": np.ones(1, np.float32)}), DECLARED)
    with pytest.raises(PeerError, match="max_weight"):
        check_update(Plan("heavy", max_weight=8), Update("sum", 9, {}), DECLARED)
