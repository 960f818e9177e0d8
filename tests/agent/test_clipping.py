"""Scaling of an update to the round's bound: no honest update is refused, under any codec."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedclip_edge.agent.clipping import store_within
from fedclip_edge.learning import strategies
from fedclip_edge.learning.aggregation import norm_of
from fedclip_edge.protocol import codec
from fedclip_edge.protocol.codec import BLOCK
from fedclip_edge.records import F32, Arrays, Codec, Plan, Shapes, Update

CODECS = st.sampled_from(get_args(Codec))
# Among them blocks of int8 that are cut off, and arrays without a value.
SHAPES: Shapes = {"a": (3, BLOCK // 2), "b": (5,), "c": (0,)}
# From values of which no codec keeps anything to the largest bound of a plan.
BOUNDS = st.floats(1e-12, 9e8)


@st.composite
def terms(draw: st.DrawFn, largest: float = 1e4) -> Arrays:
    """Terms with values of very different size: either dense or with a few values only."""
    limit = float(np.float32(largest))
    made = {}
    for name, shape in SHAPES.items():
        elements = st.floats(-limit, limit, width=32)
        fill = draw(st.one_of(st.just(0.0), elements))
        made[name] = draw(hnp.arrays(np.float32, shape, elements=elements, fill=st.just(fill)))
    return made


def decoded(codec_name: str, tensors: codec.Tensors) -> Arrays:
    return codec.restore(codec_name, tensors, SHAPES)


@given(CODECS, terms(), terms(1.0), st.integers(1, 1000), BOUNDS)
def test_the_decoded_norm_is_within_the_bound(
    codec_name: str, delta: Arrays, residual: Arrays, weight: int, bound: float
) -> None:
    tensors, left = store_within(codec_name, Update("sum", weight, delta), residual, bound)
    sent = decoded(codec_name, tensors)
    assert norm_of(sent) / weight <= bound
    # A coordinator whose processor adds in another order accepts it as well.
    assert norm_of(sent) / weight <= bound * (1 - 1e-10)
    assert set(left) <= set(SHAPES)


@given(CODECS, terms(), st.integers(1, 1000), BOUNDS, st.booleans())
def test_the_coordinator_refuses_no_honest_update(
    codec_name: Codec, delta: Arrays, weight: int, bound: float, single: bool
) -> None:
    """As decoded, it is added to the total of a round with this bound."""
    plan = Plan("linear", codec_up=codec_name, grid_bits=1)
    if single:
        plan, weight = Plan("linear", codec_up=codec_name, strategy="median"), 1
    tensors, _ = store_within(codec_name, Update("sum", weight, delta), {}, bound)
    total = strategies.total(plan, bound)
    total.add(Update("single" if single else "sum", weight, decoded(codec_name, tensors)))
    assert total.weight > 0


@given(CODECS, terms(), terms(1.0), st.integers(1, 1000), BOUNDS)
def test_the_residual_holds_only_the_loss_of_the_codec(
    codec_name: str, delta: Arrays, residual: Arrays, weight: int, bound: float
) -> None:
    """Each value that is lost is at most what rounding in the codec loses."""
    tensors, left = store_within(codec_name, Update("sum", weight, delta), residual, bound)
    sent = decoded(codec_name, tensors)
    for name in SHAPES:
        lost = left.get(name, np.zeros(SHAPES[name], np.float32))
        assert (np.abs(lost) <= largest_loss(codec_name, sent[name], lost)).all()


def largest_loss(codec_name: str, sent: F32, lost: F32) -> F32:
    """The most that a codec may lose of each value, from the values that it kept and lost."""
    if codec_name == "fp32":
        return np.zeros(sent.shape, np.float32)
    meant = np.abs(sent.astype(np.float64) + lost)
    if codec_name == "fp16":  # beyond its range a value is cut off
        largest = float(np.finfo(np.float16).max)
        relative = meant * 2.0**-11 + 2.0**-24
        return np.asarray(np.where(meant > largest, meant - largest + relative, relative))
    most = float(meant.max(initial=0.0))  # of all blocks, and so of each
    return np.full(sent.shape, most / 55 * (0.5 + 2.0**-7) * 1.01 + 1e-38)


@given(CODECS, terms(), st.integers(1, 1000))
def test_what_was_scaled_away_is_never_sent(codec_name: str, delta: Arrays, weight: int) -> None:
    """Rounds with the same update and bound send as much in the last round as in the first."""
    norm = norm_of(delta) / weight
    if codec_name == "fp16" or norm < 1e-6:
        return  # fp16 cuts off what is beyond its range, and sends that later, as it should
    bound, residual, norms = norm / 4, dict[str, F32](), list[float]()
    for _ in range(5):
        _, left = store_within(codec_name, Update("sum", weight, delta), residual, bound)
        residual = dict(left)
        norms.append(norm_of(residual) / weight)
    # The loss of int8 is at most half a step for each value, 1/110 of the largest value sent.
    assert max(norms) <= bound * 0.02 * np.sqrt(sum(np.prod(s) for s in SHAPES.values()))


@given(CODECS, terms(100.0), terms(1.0))
def test_an_update_within_the_bound_is_sent_as_it_is(
    codec_name: str, delta: Arrays, residual: Arrays
) -> None:
    expected, expected_left = codec.with_feedback(codec_name, delta, residual)
    tensors, left = store_within(codec_name, Update("sum", 1, delta), residual, 1e8)
    assert {n: t.tobytes() for n, t in tensors.items()} == {
        n: t.tobytes() for n, t in expected.items()
    }
    assert {n: t.tobytes() for n, t in left.items()} == {
        n: t.tobytes() for n, t in expected_left.items()
    }


@pytest.mark.parametrize("codec_name", get_args(Codec))
def test_the_direction_is_kept_and_the_bound_is_used(codec_name: Codec) -> None:
    delta = {
        name: np.random.default_rng(1).normal(size=shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    tensors, _ = store_within(codec_name, Update("sum", 3, delta), {}, 0.5)
    sent = decoded(codec_name, tensors)
    assert 0.495 < norm_of(sent) / 3 <= 0.5
    product = sum(float((sent[n].astype(np.float64) * delta[n]).sum()) for n in SHAPES)
    assert product / (norm_of(sent) * norm_of(delta)) > 0.999


def test_an_update_at_the_bound_is_left_room_for_another_processor() -> None:
    """Another order of the squares can give a norm that is larger in the last digits."""
    delta = {"a": np.array([3, 4], np.float32)}
    tensors, _ = store_within("fp32", Update("sum", 1, delta), {}, 5.0)
    assert 4.99 < norm_of(codec.restore("fp32", tensors, {"a": (2,)})) < 5.0 * (1 - 1e-10)


def test_an_update_of_zeros_or_without_a_delta() -> None:
    assert store_within("int8", Update("sum", 1, {}), {}, 0.1) == ({}, {})
    zeros = {"a": np.zeros(SHAPES["a"], np.float32)}
    tensors, left = store_within("int8", Update("sum", 1, zeros), {}, 1e-12)
    assert not tensors["a"].any()
    assert left == {}


@pytest.mark.parametrize("codec_name", get_args(Codec))
def test_an_update_far_below_the_bound_is_not_decoded(
    codec_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta = {"a": np.linspace(-1, 1, 1000, dtype=np.float32)}
    norm = norm_of(delta)
    expected = codec.store(codec_name, delta)
    with monkeypatch.context() as without:
        without.delattr(codec, "restore")
        found, _ = store_within(codec_name, Update("sum", 2, delta), {}, 0.75 * norm)
        assert all(found[name].tobytes() == its.tobytes() for name, its in expected.items())
        with pytest.raises(AttributeError):  # so near the bound, only the exact norm decides
            store_within(codec_name, Update("sum", 2, delta), {}, 0.501 * norm)


def test_squares_that_overflow_are_above_every_bound() -> None:
    delta = {"a": np.full(100, 1e30, np.float32)}
    tensors, _ = store_within("fp32", Update("sum", 1, delta), {}, 9e8)
    assert norm_of(codec.restore("fp32", tensors, {"a": (100,)})) <= 9e8
