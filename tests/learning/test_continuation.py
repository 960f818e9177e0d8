"""A run that starts from the model of an earlier one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from in_memory import class_texts

from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.records import Arrays, Model, Plan

CLASSES = class_texts()
DIM = 8


def schedule(method: str, **settings: object) -> Schedule:
    plan = replace(Plan(method), **settings)  # type: ignore[arg-type]
    return Schedule(methods.with_defaults(plan), CLASSES, DIM)


def adapter() -> Arrays:
    """An adapter that differs from the initial one."""
    initial = methods.initial(Plan("fedclip"), CLASSES, DIM)
    return {name: term + np.float32(0.25) for name, term in initial.parameters.items()}


def test_a_model_of_the_same_method_is_the_model_of_round_0() -> None:
    model, state = schedule("fedclip", vote="off").start_from(Model("fedclip", 7, adapter()))
    assert (model.method, model.round, state) == ("fedclip", 0, {})
    assert same(model.parameters, adapter())


@pytest.mark.parametrize("vote", ["on", "off"])
def test_a_run_starts_from_the_trained_head_of_a_model_that_a_vote_mixed(vote: str) -> None:
    mixed = {f"fedclip/{name}": term for name, term in adapter().items()}
    shares = {f"{label}/share": np.full((), 0.5, np.float32) for label in ("fedclip", "zeroshot")}
    mixed |= shares
    model, _ = schedule("fedclip", vote=vote).start_from(Model("fedclip", 11, mixed))
    assert same(model.parameters, adapter())


def test_the_adapter_of_auto_starts_in_its_own_stage() -> None:
    plan = schedule("auto", rounds=3)
    mixed = {f"fedclip/{name}": term for name, term in adapter().items()}
    mixed |= {"fedclip/share": np.ones((), np.float32)}
    start, state = plan.start_from(Model("auto", 4, mixed))
    assert same(start.parameters, plan.initial().parameters)  # gda begins anew
    after, _ = plan.close(start, plan.total(0, 1e6), state)
    assert same(after.parameters, adapter())
    begun, _ = plan.close(plan.initial(), plan.total(0, 1e6), {})
    assert not same(begun.parameters, adapter())


@pytest.mark.parametrize("method", ["gda", "ridge"])
def test_a_method_of_one_round_says_that_it_starts_anew(method: str) -> None:
    with pytest.raises(ConfigError, match="computes its model anew in one round"):
        schedule(method).start_from(schedule(method).initial())


def test_a_model_without_a_fitting_head_is_refused() -> None:
    wide = {name: np.zeros((3, 3), np.float32) for name in adapter()}
    with pytest.raises(ConfigError, match="has no part that fedclip"):
        schedule("fedclip").start_from(Model("fedclip", 1, wide))


def same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(term, other[name]) for name, term in one.items()
    )
