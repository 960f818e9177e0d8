"""Bound on the norm of an update: laws over random norms, and the bound of the first round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_memory import class_texts

from fedclip_edge.learning import methods, norm_bound
from fedclip_edge.learning.norm_bound import FACTOR, NormBound, bound_after, first_bound
from fedclip_edge.records import Layout, Plan

LAYOUT = Layout({"w": (4, 25)}, {"w": (4, 25)})
NORMS = st.floats(1e-3, 1e3)
ROUNDS = st.lists(st.lists(st.one_of(st.just(0.0), NORMS), max_size=7), max_size=6)
WIDE = NormBound(1.0, 1e-12, 1e12)


@given(st.lists(NORMS, min_size=2, max_size=8), st.floats(0, 1e300))
def test_one_device_of_three_or_more_cannot_move_the_bound(others: list[float], lie: float) -> None:
    """The bound that is open is above all norms, because the coordinator has accepted them."""
    if lie == 0:  # left out, as that of a device without pictures
        others = [*others, others[0]]
    bound = NormBound(max(*others, lie), 1e-12, math.inf)
    following = bound.after([*others, lie]).value
    assert FACTOR * min(others) <= following <= FACTOR * max(others)


def test_of_four_devices_the_second_smallest_norm_counts() -> None:
    assert WIDE.after([0.8, 0.2, 0.6, 0.4]).value == FACTOR * 0.4
    assert WIDE.after([0.2, 0.6, 0.4]).value == FACTOR * 0.4
    assert WIDE.after([0.9, 0.2, 0.6, 0.4, 0.8]).value == FACTOR * 0.6


@given(st.lists(NORMS, max_size=7), st.randoms())
def test_the_order_of_the_norms_does_not_matter(norms: list[float], random: Random) -> None:
    shuffled = list(norms)
    random.shuffle(shuffled)
    assert WIDE.after(shuffled) == WIDE.after(norms)


@given(NORMS, st.floats(1.1, 10), st.lists(st.one_of(st.just(0.0), NORMS), max_size=7))
def test_a_bound_grows_slowly_and_keeps_its_limits(
    value: float, room: float, norms: list[float]
) -> None:
    bound = NormBound(value, value / 10, value * room)
    following = bound.after(norms)
    assert bound.least <= following.value <= min(bound.most, FACTOR * value)
    assert (following.least, following.most) == (bound.least, bound.most)
    if sum(norm > 0 for norm in norms) < 3:
        assert following.value >= value / FACTOR


def test_devices_that_are_scaled_down_let_the_bound_grow() -> None:
    bound = NormBound(0.1, 0.01, 1000.0)
    for _ in range(10):
        bound = bound.after([min(norm, bound.value) for norm in (0.5, 0.6, 0.7, 0.8)])
    assert bound.value == FACTOR * 0.6


def test_devices_without_pictures_change_nothing() -> None:
    bound = NormBound(0.5, 0.01, 1000.0)
    assert bound.after([]) == bound.after([0.0, 0.0]) == bound
    assert bound.after([0.0, 0.0, 0.4, 0.2, 0.3]).value == FACTOR * 0.3


@pytest.mark.parametrize("norm", [-0.1, math.nan, math.inf])
def test_a_norm_that_no_contribution_can_have(norm: float) -> None:
    with pytest.raises(ValueError, match="expected finite numbers"):
        WIDE.after([0.5, norm])


@given(ROUNDS, st.integers(0, 6))
def test_a_restart_finds_the_same_bound(rounds: Sequence[list[float]], before: int) -> None:
    """The bound after a restart is made from all rounds of the journal, sorted by device."""
    plan = Plan("linear")
    bound = bound_after(plan, LAYOUT, rounds[:before])
    for norms in rounds[before:]:
        bound = bound.after(norms)
    assert bound == bound_after(plan, LAYOUT, map(sorted, rounds))


def test_the_first_bound_is_the_way_that_adam_can_go() -> None:
    """64 batches of 32 pictures in an epoch, 100 parameters."""
    plan = Plan("linear", {"lr": 0.01, "epochs": 3, "batch_size": 32})
    assert first_bound(plan, LAYOUT).value == pytest.approx(0.01 * 3 * 64 * 10)
    assert first_bound(Plan("linear", {"lr": 1.0}, max_norm=7.0), LAYOUT).value == 7.0
    assert first_bound(plan, LAYOUT).most == 1000.0


@pytest.mark.parametrize("name", ["ridge", "zeroshot"])
def test_methods_without_a_delta_keep_the_plans_bound(name: str) -> None:
    plan = Plan(name)
    layout = methods.plan_layout(plan, class_texts(("ant", "bee")), 16)
    assert bound_after(plan, layout, [[0.1, 0.2, 0.3]]).value == plan.max_norm


def test_the_factor_lets_a_bound_grow() -> None:
    """With a factor of 1 or less, no bound would ever rise."""
    assert norm_bound.FACTOR > 1
