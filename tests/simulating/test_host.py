"""Simulated devices that send noise, and the bound and the strategies that resist it."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from simulated import pool, task

from fedclip_edge.learning.aggregation import ExactSum, norm_of
from fedclip_edge.learning.norm_bound import NormBound
from fedclip_edge.records import Plan, Update
from fedclip_edge.simulating import federation
from fedclip_edge.simulating.federation import Round, federate
from fedclip_edge.simulating.host import NOISE, noise
from fedclip_edge.simulating.splits import deal, parse_split
from fedclip_edge.simulating.workers import Here

POOL = pool(150)
TERMS = {"a": np.linspace(-1, 1, 300, dtype=np.float32), "b": np.ones((4, 5), np.float32)}


def test_noise_has_the_updates_layout_and_not_its_values() -> None:
    update = Update("sum", 3, TERMS, {"g": np.arange(20)})
    found = noise(update, Plan().max_norm, "cam")
    assert (found.kind, found.weight) == ("sum", 3)
    assert {n: t.shape for n, t in found.delta.items()} == {n: t.shape for n, t in TERMS.items()}
    assert norm_of(found.delta) == pytest.approx(NOISE * norm_of(TERMS), rel=1e-5)
    assert 0 <= found.sums["g"].min() <= found.sums["g"].max() <= 19
    again = noise(update, Plan().max_norm, "cam")
    assert all(found.delta[n].tobytes() == again.delta[n].tobytes() for n in TERMS)
    other = noise(update, Plan().max_norm, "dog")
    assert found.delta["a"].tobytes() != other.delta["a"].tobytes()


def test_noise_stays_within_what_the_plan_admits() -> None:
    plan = Plan(max_norm=5.0)
    ExactSum(plan).check(noise(Update("sum", 2, TERMS), plan.max_norm, "cam"))


def last(plan: Plan, noisy: float) -> Round:
    fleet = deal(POOL, parse_split("iid"), devices=10, seed=0, noisy=noisy)
    return list(federate(task(plan), fleet, Here(POOL)))[-1]


def mean(found: Round) -> float:
    return float(np.mean([one.top1 for one in found.figures.values()]))


LINEAR = Plan("linear", {"lr": 0.01}, rounds=8, vote="off")


def unbounded(plan: Plan, noisy: float) -> float:
    """Accuracy under the plan's `max_norm` alone, a thousand times the norm of honest updates."""
    wide = NormBound(plan.max_norm, plan.max_norm, plan.max_norm)
    with mock.patch.object(federation, "_first_bound", return_value=wide):
        return mean(last(plan, noisy))


@pytest.fixture(scope="module")
def honest() -> float:
    """Accuracy of the mean with honest devices only."""
    return mean(last(LINEAR, 0.0))


@pytest.mark.one_python
def test_the_rounds_bound_protects_the_mean_from_a_fifth_that_sends_noise(honest: float) -> None:
    assert unbounded(LINEAR, 0.2) < honest - 0.08
    assert mean(last(LINEAR, 0.2)) > honest - 0.05


@pytest.mark.one_python
def test_the_rounds_bound_costs_honest_devices_nothing(honest: float) -> None:
    assert unbounded(LINEAR, 0.0) <= honest


@pytest.mark.one_python
@pytest.mark.parametrize("strategy", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_a_robust_strategy_holds_without_the_bound(strategy: str, honest: float) -> None:
    """With the same devices and the same noise."""
    assert unbounded(replace(LINEAR, strategy=strategy), 0.2) > honest - 0.05


def test_sums_of_noise_are_refused_as_a_coordinator_refuses_them() -> None:
    plan = Plan("ridge", rounds=1)
    honest = deal(POOL, parse_split("iid"), devices=10, seed=0)
    noisy = deal(POOL, parse_split("iid"), devices=10, seed=0, noisy=0.2)
    quiet = {device.name for device in noisy.devices if not device.sends_noise}
    assert len(quiet) == 8
    only = replace(honest, devices=tuple(d for d in honest.devices if d.name in quiet))
    expected = list(federate(task(plan), only, Here(POOL)))[-1].model
    found = last(plan, 0.2).model
    assert found is not None
    assert expected is not None
    assert {n: t.tobytes() for n, t in found.parameters.items()} == {
        n: t.tobytes() for n, t in expected.parameters.items()
    }
