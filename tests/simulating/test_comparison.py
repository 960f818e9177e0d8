"""The runs of a comparison: their order, and notes for the reader."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from in_memory import class_texts
from simulated import pool

from fedclip_edge.errors import ConfigError, DataError
from fedclip_edge.simulating.comparison import (
    Choices,
    check,
    compare,
    count_rounds,
    deal_of,
    views,
)
from fedclip_edge.simulating.pool import TEST
from fedclip_edge.simulating.settings import parse_settings
from fedclip_edge.simulating.splits import parse_split
from fedclip_edge.simulating.workers import Here

POOL = pool()
CHOICES = Choices(parse_settings("zeroshot,fedclip", 2), parse_split("domain"))


@pytest.mark.one_python
def test_runs_come_by_seed_then_held_out_domain_then_setting() -> None:
    choices = replace(CHOICES, seeds=2, first_seed=5, hold_out="all")
    steps = list(compare(choices, POOL, Here(POOL), print))
    assert len(steps) == count_rounds(choices, POOL) == 2 * 3 * (2 + 4)
    runs = [one.outcomes[0].run for one in steps if one.outcomes]
    assert [(run.seed, run.held_out, run.setting.label) for run in runs] == [
        (seed, domain, label)
        for seed in (5, 6)
        for domain in ("barn", "roof", "yard")
        for label in ("zeroshot", "fedclip")
    ]


def test_the_seed_is_the_plans() -> None:
    one, other = (
        list(compare(replace(CHOICES, first_seed=seed), POOL, Here(POOL), print))[-1].outcomes[0]
        for seed in (0, 1)
    )
    assert one.zero_shot == other.zero_shot
    assert one.up_bytes != other.up_bytes or one.fleet != other.fleet


def test_the_classes_are_halved_for_base_to_new_the_first_half_rounded_up() -> None:
    five = pool(classes=class_texts(tuple("abcde")))
    base, new = views(replace(CHOICES, base_to_new=True), five, 0)
    assert (base.classes.names, new.classes.names) == (("a", "b", "c"), ("d", "e"))
    np.testing.assert_array_equal(base.place, [0, 1, 2, -1, -1])
    np.testing.assert_array_equal(new.place, [-1, -1, -1, 0, 1])
    np.testing.assert_array_equal(new.classes.vectors, five.classes.vectors[3:])


def test_new_classes_are_neither_trained_on_nor_mixed_with_the_old() -> None:
    """The pictures of the new classes must not change the model of the base classes."""
    choices = replace(CHOICES, base_to_new=True)
    changed = POOL.vectors.copy()
    changed[POOL.labels >= 2] *= -3
    other = replace(POOL, vectors=changed)
    one = list(compare(choices, POOL, Here(POOL), print))[-1].outcomes
    two = list(compare(choices, other, Here(other), print))[-1].outcomes
    assert [outcome.view for outcome in one] == ["base", "new"]
    assert one[0].fleet == two[0].fleet
    assert one[1].fleet != two[1].fleet


def test_the_classes_that_are_left_out_depend_on_the_seed() -> None:
    five = pool(classes=class_texts(tuple("abcde")))
    choices = replace(CHOICES, leave_out=2)
    kept = [views(choices, five, seed)[0] for seed in range(9)]
    assert {len(view.classes.names) for view in kept} == {3}
    assert len({view.classes.names for view in kept}) > 1
    assert views(choices, five, 4)[0].classes.names == kept[4].classes.names
    for view in kept:
        for label, name in enumerate(five.classes.names):
            place = int(view.place[label])
            assert (place >= 0) == (name in view.classes.names)
            assert place < 0 or view.classes.names[place] == name


def test_no_device_trains_on_a_class_that_is_left_out() -> None:
    choices = replace(CHOICES, leave_out=1)
    (view,) = views(choices, POOL, 0)
    hidden = (view.place[POOL.labels] < 0) & (POOL.sides != TEST)
    changed = POOL.vectors.copy()
    changed[hidden] *= -3
    other = replace(POOL, vectors=changed)
    one = list(compare(choices, POOL, Here(POOL), print))[-1].outcomes
    assert one[0].fleet == list(compare(choices, other, Here(other), print))[-1].outcomes[0].fleet
    for device in deal_of(choices, POOL, 0, "").devices:
        for rows in (device.train, device.validation):
            assert (view.place[POOL.labels[rows]] >= 0).all()
        assert (view.place[POOL.labels[device.test]] < 0).any()


@pytest.mark.parametrize("changes", [{"leave_out": 1}, {"base_to_new": True}])
def test_pictures_of_other_classes_are_measured_once_a_run(changes: dict[str, Any]) -> None:
    choices = replace(CHOICES, **changes)
    steps = list(compare(choices, POOL, Here(POOL), print))
    first, *more = next(step.outcomes for step in steps if step.outcomes)
    place = views(choices, POOL, 0)[0].place[POOL.labels[POOL.sides == TEST]]
    assert first.separation is not None
    assert first.separation.known.sum() == (place >= 0).sum()
    assert first.separation.others.sum() == (place < 0).sum()
    assert first.zero_shot_separation is not None
    assert first.separation.auroc == first.zero_shot_separation.auroc  # the method is zero-shot
    assert [one.separation for one in more] == [None] * len(more)
    whole = next(
        step.outcomes for step in compare(CHOICES, POOL, Here(POOL), print) if step.outcomes
    )
    assert whole[0].separation is None


def test_the_floor_of_the_devices_holds_in_every_run() -> None:
    steps = list(compare(replace(CHOICES, min_per_class=1000), POOL, Here(POOL), print))
    assert [one.outcomes[0].up_bytes for one in steps if one.outcomes] == [0, 0]


def test_devices_that_were_topped_up_are_said_to_be() -> None:
    said: list[str] = []
    skewed = replace(CHOICES, split=parse_split("dirichlet:0.01"), devices=15)
    list(compare(skewed, POOL, Here(POOL), said.append))
    assert len(said) == 1
    assert "of 15 devices had fewer than 5 training pictures (--least)" in said[0]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"leave_out": 3}, DataError, "--leave-out 3 leaves fewer than two of the 4 classes"),
        ({"leave_out": 1, "base_to_new": True}, ConfigError, "give either --leave-out or"),
        ({"hold_out": "attic"}, ConfigError, "choose one of: barn, roof, yard, or all"),
        (
            {"base_to_new": True, "settings": parse_settings("linear", 1)},
            ConfigError,
            "linear learns",
        ),
        (
            {"base_to_new": True, "settings": parse_settings("tip-adapter", 1)},
            ConfigError,
            "tip-adapter",
        ),
        ({"devices": 2}, ConfigError, "fewer than the 3 domains"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    changes: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        check(replace(CHOICES, **changes), POOL)  # type: ignore[arg-type]


def test_three_classes_are_too_few_for_base_to_new() -> None:
    few = pool(classes=class_texts())
    with pytest.raises(DataError, match="needs four classes or more"):
        check(replace(CHOICES, base_to_new=True), few)


def test_without_domains_none_can_be_held_out() -> None:
    with pytest.raises(DataError, match="--hold-out needs at least two domains"):
        check(replace(CHOICES, hold_out="all", split=parse_split("iid")), pool(domains=False))
