"""Mixtures: weighted sums of the logits of several heads, as one model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_memory import class_texts, features

from fedclip_edge.learning import ballot, methods, mixture
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.protocol import wire
from fedclip_edge.records import Arrays, Model

D = 8
CLASSES = class_texts(tuple("abcde"), D)
PICTURES = features(40, 1, CLASSES)
SHARE = st.floats(-4, 4, width=32)


def head(seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    its = {"weight": random.normal(size=(5, D)), "bias": random.normal(size=5)}
    return {name: term.astype(np.float32) for name, term in its.items()}


def logits(model: Model) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return methods.predict(model, PICTURES.vectors, CLASSES).astype(np.float64)


@given(zero=SHARE, one=SHARE, two=SHARE)
def test_the_logits_are_the_weighted_sum_of_those_of_the_members(
    zero: float, one: float, two: float
) -> None:
    members = {"gda": head(1), "gda.own": head(2)}
    shares = {"zeroshot": zero, "gda": one, "gda.own": two}
    model = mixture.mixed("gda", 3, members, shares)
    expected = zero * logits(zeroshot.MODEL)
    expected += one * logits(Model("gda", 3, head(1))) + two * logits(Model("gda", 3, head(2)))
    np.testing.assert_allclose(logits(model), expected, rtol=1e-4, atol=1e-3)
    assert (model.method, model.round, mixture.is_one(model)) == ("gda", 3, True)
    assert mixture.shares_of(model) == pytest.approx(shares)


def test_a_member_is_read_back_byte_for_byte_also_from_a_ballot() -> None:
    shares = {"zeroshot": (1.0, 0.5), "gda": (0.0, 0.5)}
    for model in (
        mixture.mixed("gda", 1, {"gda": head(1)}, {"zeroshot": 0.5, "gda": 0.5}),
        ballot.made("gda", 1, {"gda": head(1)}, shares),
    ):
        read = wire.unpack_model(
            wire.pack_model(model, "fp32"),
            "fp32",
            {name: term.shape for name, term in model.parameters.items()},
        )
        assert mixture.members_of(read).keys() == {"zeroshot", "gda"}
        found = mixture.member(read, "gda").parameters
        for name, term in head(1).items():
            assert found[name].tobytes() == term.tobytes()


def test_the_shapes_of_a_mixture_follow_from_those_of_its_members() -> None:
    model = mixture.mixed("gda", 1, {"gda": head(1)}, {"zeroshot": 0.5, "gda": 0.5})
    expected = mixture.shapes({"gda": {"weight": (5, D), "bias": (5,)}, "zeroshot": {}})
    assert {name: term.shape for name, term in model.parameters.items()} == dict(expected)


def test_a_model_that_is_no_mixture_is_its_own_only_member() -> None:
    model = Model("gda", 2, head(1))
    assert not mixture.is_one(model)
    assert mixture.shares_of(model) == {"gda": 1.0}
    assert mixture.member(model, "gda").parameters == model.parameters
