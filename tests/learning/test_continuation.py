"""A run that starts from the model of an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import class_texts

from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.records import Arrays, ClassTexts, Model, Plan

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
    model, state = schedule("fedclip", vote="off").start_from(
        Model("fedclip", 7, adapter()), CLASSES
    )
    assert (model.method, model.round, state) == ("fedclip", 0, {})
    assert same(model.parameters, adapter())


@pytest.mark.parametrize("vote", ["on", "off"])
def test_a_run_starts_from_the_trained_head_of_a_model_that_a_vote_mixed(vote: str) -> None:
    mixed = {f"fedclip/{name}": term for name, term in adapter().items()}
    shares = {f"{label}/share": np.full((), 0.5, np.float32) for label in ("fedclip", "zeroshot")}
    mixed |= shares
    model, _ = schedule("fedclip", vote=vote).start_from(Model("fedclip", 11, mixed), CLASSES)
    assert same(model.parameters, adapter())


def test_the_adapter_of_auto_starts_in_its_own_stage() -> None:
    plan = schedule("auto", rounds=3)
    mixed = {f"fedclip/{name}": term for name, term in adapter().items()}
    mixed |= {"fedclip/share": np.ones((), np.float32)}
    start, state = plan.start_from(Model("auto", 4, mixed), CLASSES)
    assert same(start.parameters, plan.initial().parameters)  # gda begins anew
    after, _ = plan.close(start, plan.total(0, 1e6), state)
    assert same(after.parameters, adapter())
    begun, _ = plan.close(plan.initial(), plan.total(0, 1e6), {})
    assert not same(begun.parameters, adapter())


@pytest.mark.parametrize("method", ["gda", "ridge", "tofa"])
def test_a_method_of_one_round_says_that_it_starts_anew(method: str) -> None:
    with pytest.raises(ConfigError, match="computes its model anew in one round"):
        schedule(method).start_from(schedule(method).initial(), CLASSES)


def test_a_model_without_a_fitting_head_is_refused() -> None:
    wide = {name: np.zeros((3, 3), np.float32) for name in adapter()}
    with pytest.raises(ConfigError, match="has no part that fedclip"):
        schedule("fedclip").start_from(Model("fedclip", 1, wide), CLASSES)


@pytest.mark.parametrize("method", ["zeroshot", "tip-adapter"])
def test_a_method_without_a_shared_model_says_so(method: str) -> None:
    with pytest.raises(ConfigError, match=f"{method} trains no shared model, so it cannot"):
        schedule(method).start_from(schedule(method).initial(), CLASSES)


AVERAGED = [
    name
    for name in methods.names()
    if methods.get(name).traits.is_averaged and methods.get(name).stages is None
]
NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")
TEXTS = class_texts(NAMES, DIM)


def chosen(names: Sequence[str]) -> ClassTexts:
    """Classes with the texts that they have in every list."""
    rows = [NAMES.index(name) for name in names]
    return ClassTexts(tuple(names), TEXTS.vectors[rows], 100.0, TEXTS.prompt)


lists = st.lists(st.sampled_from(NAMES), min_size=2, unique=True).map(chosen)


@settings(max_examples=40, deadline=None)
@given(method=st.sampled_from(AVERAGED), before=lists, after=lists, seed=st.integers(0, 99))
def test_classes_that_stay_keep_their_logits_whatever_is_added_removed_or_moved(
    method: str, before: ClassTexts, after: ClassTexts, seed: int
) -> None:
    plan = methods.with_defaults(Plan(method, vote="off"))
    random = np.random.default_rng(seed)
    initial = methods.initial(plan, before, DIM)
    trained = {
        name: (term + 0.3 * random.random(term.shape)).astype(np.float32)
        for name, term in initial.parameters.items()
    }
    both = [name for name in after.names if name in before.names]
    following = Schedule(plan, after, DIM)
    if not both and methods.get(method).per_class:
        with pytest.raises(ConfigError, match="no class of the model is in the new run"):
            following.start_from(Model(method, 3, trained), before)
        return
    started, state = following.start_from(Model(method, 3, trained), before)
    assert state == {}
    vectors = (10 * random.normal(size=(7, DIM))).astype(np.float32)
    old = methods.predict(Model(method, 3, trained), vectors, before)
    new = methods.predict(started, vectors, after)
    assert new.shape == (7, len(after.names))
    np.testing.assert_allclose(
        new[:, [after.names.index(name) for name in both]],
        old[:, [before.names.index(name) for name in both]],
        rtol=1e-5,
        atol=1e-4,
    )
    added = [row for row, name in enumerate(after.names) if name not in before.names]
    fresh = methods.initial(plan, after, DIM).parameters
    for name in methods.get(method).per_class:
        assert np.array_equal(started.parameters[name][added], fresh[name][added])


@pytest.mark.parametrize("method", AVERAGED)
def test_a_method_names_every_parameter_that_depends_on_the_classes(method: str) -> None:
    plan = methods.with_defaults(Plan(method, vote="off"))
    some, other = (
        methods.initial(plan, chosen(names), DIM).parameters
        for names in (("ant", "bee", "cat"), ("bee", "elk", "ant", "dog"))
    )
    differ = {n for n in some if not np.array_equal(some[n], other[n])}
    assert differ == set(methods.get(method).per_class)
    for name in differ:
        assert (len(some[name]), len(other[name])) == (3, 4)


def test_a_method_that_does_not_say_how_its_parameters_change_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent = replace(methods.get("linear"), per_class=())
    monkeypatch.setitem(methods._METHODS, "linear", silent)
    plan = methods.with_defaults(Plan("linear", vote="off"))
    model = methods.initial(plan, CLASSES, DIM)
    more = class_texts((*CLASSES.names, "dog"), DIM)
    with pytest.raises(ConfigError, match="linear does not say how its parameters change"):
        Schedule(plan, more, DIM).start_from(model, CLASSES)


def test_the_adapter_of_auto_goes_on_with_a_class_more() -> None:
    plan = methods.with_defaults(Plan("auto", rounds=3))
    more = class_texts((*CLASSES.names, "dog"), DIM)
    head = {"weight": np.ones((3, DIM), np.float32), "bias": np.zeros(3, np.float32)}
    mixed = {f"fedclip/{name}": term for name, term in adapter().items()}
    mixed |= {f"gda/{name}": term for name, term in head.items()}
    mixed |= {f"{label}/share": np.ones((), np.float32) for label in ("fedclip", "gda")}
    following = Schedule(plan, more, DIM)
    start, state = following.start_from(Model("auto", 4, mixed), CLASSES)
    assert start.parameters["weight"].shape == (4, DIM)  # gda begins anew, with every class
    after, _ = following.close(start, following.total(0, 1e6), state)
    assert same(after.parameters, adapter())


def same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(term, other[name]) for name, term in one.items()
    )
