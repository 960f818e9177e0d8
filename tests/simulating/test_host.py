"""Simulated devices that send noise, and the strategies that resist it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulated import pool, task

from fedclip_edge.learning.aggregation import ExactSum, norm_of
from fedclip_edge.records import Plan, Update
from fedclip_edge.simulating.federation import Round, federate
from fedclip_edge.simulating.host import NOISE, noise
from fedclip_edge.simulating.splits import deal, parse_split
from fedclip_edge.simulating.workers import Here

POOL = pool(150)
TERMS = {"a": np.linspace(-1, 1, 300, dtype=np.float32), "b": np.ones((4, 5), np.float32)}


def test_noise_has_the_updates_layout_and_not_its_values() -> None:
    update = Update("sum", 3, TERMS, {"g": np.arange(20)})
    found = noise(update, Plan(), "cam")
    assert (found.kind, found.weight) == ("sum", 3)
    assert {n: t.shape for n, t in found.delta.items()} == {n: t.shape for n, t in TERMS.items()}
    assert norm_of(found.delta) == pytest.approx(NOISE * norm_of(TERMS), rel=1e-5)
    assert 0 <= found.sums["g"].min() <= found.sums["g"].max() <= 19
    again = noise(update, Plan(), "cam")
    assert all(found.delta[n].tobytes() == again.delta[n].tobytes() for n in TERMS)
    other = noise(update, Plan(), "dog")
    assert found.delta["a"].tobytes() != other.delta["a"].tobytes()


def test_noise_stays_within_what_the_plan_admits() -> None:
    plan = Plan(max_norm=5.0)
    ExactSum(plan).check(noise(Update("sum", 2, TERMS), plan, "cam"))


def last(plan: Plan, noisy: float) -> Round:
    fleet = deal(POOL, parse_split("iid"), devices=10, seed=0, noisy=noisy)
    return list(federate(task(plan), fleet, Here(POOL)))[-1]


def mean(found: Round) -> float:
    return float(np.mean([one.top1 for one in found.figures.values()]))


LINEAR = Plan("linear", {"lr": 0.01}, rounds=8)


@pytest.fixture(scope="module")
def averaged() -> tuple[float, float]:
    """Accuracy of the mean with honest devices only, and with a fifth that send noise."""
    return mean(last(LINEAR, 0.0)), mean(last(LINEAR, 0.2))


@pytest.mark.one_python
def test_the_mean_does_not_hold_where_a_fifth_of_a_fleet_sends_noise(
    averaged: tuple[float, float],
) -> None:
    honest, broken = averaged
    assert broken < honest - 0.08


@pytest.mark.one_python
@pytest.mark.parametrize("strategy", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_a_robust_strategy_holds(strategy: str, averaged: tuple[float, float]) -> None:
    """With the same devices and the same noise."""
    held = last(replace(LINEAR, strategy=strategy), 0.2)
    assert mean(held) > averaged[0] - 0.05
