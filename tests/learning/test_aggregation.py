"""Sums over devices: exact in any order, and unchanged by a refused update."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedclip_edge.errors import PeerError
from fedclip_edge.learning.aggregation import ExactSum, norm_of
from fedclip_edge.records import F32, I64, Arrays, Plan, Update

BITS = st.integers(1, 52)


def updates(largest: float = 100.0) -> st.SearchStrategy[Update]:
    """Updates with two terms and a weight, within the default bounds; six do not overflow."""
    bound = float(np.float32(largest))
    values = st.floats(-bound, bound, width=32)
    return st.builds(
        lambda weight, a, b: Update("sum", weight, {"a": a, "b": b}),
        st.integers(1, 2**20),
        hnp.arrays(np.float32, (2, 3), elements=values),
        hnp.arrays(np.float32, 4, elements=values),
    )


def total_of(plan: Plan, contributions: Sequence[Update]) -> ExactSum:
    total = ExactSum(plan)
    for update in contributions:
        total.add(update)
    return total


def on_grid(value: np.float32, bits: int) -> int:
    """The value in grid steps, rounded half to even, in rational arithmetic."""
    steps = Fraction(float(value)) * Fraction(2) ** bits
    return round(steps)


def exact_terms(contributions: Sequence[Update], bits: int) -> dict[str, list[int]]:
    return {
        name: [
            sum(on_grid(u.delta[name].flat[i], bits) for u in contributions)
            for i in range(term.size)
        ]
        for name, term in contributions[0].delta.items()
    }


def bytes_of(total: ExactSum) -> tuple[int, dict[str, bytes], dict[str, bytes]]:
    return (
        total.weight,
        {name: term.tobytes() for name, term in total.terms.items()},
        {name: term.tobytes() for name, term in total.mean().items()},
    )


@given(st.data(), st.lists(updates(), min_size=2, max_size=6), BITS)
def test_any_order_of_arrival_gives_the_same_bytes(
    data: st.DataObject, contributions: list[Update], bits: int
) -> None:
    plan = Plan(grid_bits=bits)
    other = data.draw(st.permutations(contributions))
    assert bytes_of(total_of(plan, contributions)) == bytes_of(total_of(plan, other))


def test_a_float_sum_would_depend_on_the_order() -> None:
    """The counterexample for the law above, with values that the grid can hold."""
    one, tiny = np.float32(1), np.float32(2.0**-24)
    assert (one + tiny) + tiny != one + (tiny + tiny)
    plan = Plan(grid_bits=32)
    ones = [Update("sum", 1, {"a": np.array([value])}) for value in (one, tiny, tiny)]
    assert bytes_of(total_of(plan, ones)) == bytes_of(total_of(plan, ones[::-1]))
    assert total_of(plan, ones).terms["a"].tolist() == [2**32 + 2**9]


@given(st.lists(updates(), min_size=1, max_size=6), BITS)
def test_sums_are_those_of_rational_arithmetic(contributions: list[Update], bits: int) -> None:
    total = total_of(Plan(grid_bits=bits), contributions)
    assert {n: t.ravel().tolist() for n, t in total.terms.items()} == exact_terms(
        contributions, bits
    )
    assert {name: term.shape for name, term in total.terms.items()} == {"a": (2, 3), "b": (4,)}
    assert all(term.dtype == np.int64 for term in total.terms.values())
    assert total.weight == sum(update.weight for update in contributions)


@given(st.lists(updates(), min_size=1, max_size=6), BITS)
def test_the_mean_is_numpys_within_half_a_grid_step(contributions: list[Update], bits: int) -> None:
    mean = total_of(Plan(grid_bits=bits), contributions).mean()
    weight = sum(update.weight for update in contributions)
    half_steps = len(contributions) / weight * 2.0**-bits / 2
    for name, term in mean.items():
        stacked = np.stack([update.delta[name] for update in contributions])
        expected = np.sum(stacked, axis=0, dtype=np.float64) / weight
        assert term.dtype == np.float32
        rounding = np.abs(expected) * 2.0**-23 + 2.0**-149  # from rounding the result to float32
        assert (np.abs(term - expected) <= half_steps + 2 * rounding).all()


def test_a_mean_weighs_each_device_as_it_says() -> None:
    plan = Plan()
    total = ExactSum(plan)
    for weight, value in ((1, 4.0), (3, 8.0)):
        total.add(Update("sum", weight, {"a": weight * np.array([value, -value], np.float32)}))
    assert total.mean()["a"].tolist() == [7.0, -7.0]
    assert total.weight == 4


def test_nothing_was_added() -> None:
    assert dict(ExactSum(Plan()).mean()) == {}


@given(st.lists(updates(1000.0), min_size=1, max_size=12))
def test_a_sum_that_could_overflow_is_refused_and_never_wraps(contributions: list[Update]) -> None:
    """On the finest grid, int64 ends at 2048; accepted updates must still be summed exactly."""
    total, taken = ExactSum(Plan(grid_bits=52, max_norm=1e6)), list[Update]()
    for update in contributions:
        reach = sum(max(float(np.abs(t).max()) for t in u.delta.values()) for u in [*taken, update])
        if reach < 2048:
            total.add(update)
            taken.append(update)
        else:
            with pytest.raises(PeerError, match="overflow"):
                total.add(update)
    exact = exact_terms(taken, 52)
    assert {name: term.ravel().tolist() for name, term in total.terms.items()} == exact


def array(*values: float) -> F32:
    return np.array(values, np.float32)


PLAN = Plan(grid_bits=52, max_weight=10, max_norm=1900.0)
KEPT: Arrays = {"a": array(1.0, -2.0), "b": array(0.5)}
OUT_OF_BOUNDS: dict[str, tuple[Callable[[], Update], str]] = {
    "norm": (lambda: Update("sum", 1, {"a": array(0, 1901), "b": array(0)}), "max_norm"),
    "norm over all terms": (
        lambda: Update("sum", 1, {"a": array(1400, 0), "b": array(1400)}),
        "norm 1980 is above the round's max_norm 1900",
    ),
    "weight": (lambda: Update("sum", 11, KEPT), "weight 11 is above the plan's max_weight 10"),
    "kind": (
        lambda: Update("single", 1, KEPT),
        "kind 'single'; the strategy fedavg needs kind 'sum'",
    ),
    "overflow": (
        lambda: Update("sum", 10, {"a": array(2047, 0), "b": array(0)}),
        "overflow int64; choose a smaller grid_bits",
    ),
    "one value beyond int64": (
        lambda: Update("sum", 10, {"a": array(2048, 0), "b": array(0)}),
        "overflow",
    ),
    "a missing term": (lambda: Update("sum", 1, {"a": array(1, 2)}), "do not match"),
    "no terms": (lambda: Update("sum", 1, {}), "do not match"),
    "another term": (lambda: Update("sum", 1, {"a": array(1, 2), "c": array(1)}), "do not match"),
    "one term more": (lambda: Update("sum", 1, {**KEPT, "c": array(1)}), "do not match"),
    "another shape": (lambda: Update("sum", 1, {"a": array(1, 2, 3), "b": array(1)}), "match"),
    "a shape that would spread": (
        lambda: Update("sum", 1, {"a": array(1), "b": array(1)}),
        "match",
    ),
}


@pytest.mark.parametrize("case", OUT_OF_BOUNDS)
def test_what_is_out_of_bounds_is_refused_and_leaves_no_trace(case: str) -> None:
    make, message = OUT_OF_BOUNDS[case]
    total = ExactSum(PLAN)
    total.add(Update("sum", 2, KEPT))
    before = bytes_of(total)
    with pytest.raises(PeerError, match=message):
        total.check(make())
    with pytest.raises(PeerError, match=message):
        total.add(make())
    assert bytes_of(total) == before
    # A refused update must not use up range in the sum either: this one still fits.
    total.add(Update("sum", 10, {"a": array(0, 2045), "b": array(-2045)}))
    assert total.terms["a"].tolist() == [2**52, 2043 * 2**52]
    assert total.weight == 12


def test_an_update_without_terms_admits_no_other_after_it() -> None:
    total = ExactSum(PLAN)
    total.add(Update("sum", 1, {}))
    with pytest.raises(PeerError, match="do not match"):
        total.add(Update("sum", 1, KEPT))
    assert (total.weight, total.terms) == (1, {})


def test_a_check_takes_nothing() -> None:
    total = ExactSum(PLAN)
    for _ in range(3):
        total.check(Update("sum", 1, {"a": array(1800)}))
    assert (total.weight, total.terms) == (0, {})
    total.add(Update("sum", 1, KEPT))


def test_a_bound_itself_is_within() -> None:
    total = ExactSum(PLAN)
    total.add(Update("sum", 10, {"a": array(1900)}))
    assert total.weight == 10
    total = ExactSum(Plan(max_norm=5.0))
    total.add(Update("sum", 2, {"a": array(6, 8)}))  # its norm divided by its weight is 5
    with pytest.raises(PeerError, match=r"norm 5\.5 is above the round's max_norm 5"):
        total.add(Update("sum", 2, {"a": array(0, 11)}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_update_can_hold_what_is_no_number(value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        Update("sum", 1, {"a": array(0, value)})


def test_what_is_added_later_changes_no_mean_read_before() -> None:
    total = ExactSum(Plan())
    terms = {"a": array(1, 2), "b": array(3)}
    total.add(Update("sum", 1, terms))
    before = total.mean()
    terms["a"][:] = 0  # the caller reuses its buffer
    total.add(Update("sum", 1, {"a": array(3, 4), "b": array(5)}))
    assert before["a"].tolist() == [1, 2]
    assert total.mean()["a"].tolist() == [2, 3]


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3)])
def test_terms_of_any_shape_keep_it(shape: tuple[int, ...]) -> None:
    total = ExactSum(Plan())
    for _ in range(2):
        total.add(Update("sum", 1, {"a": np.full(shape, 0.5, np.float32)}))
    mean = total.mean()["a"]
    assert mean.shape == shape
    assert (mean == 0.5).all()


@given(updates(), st.integers(1, 1000))
def test_the_norm_is_that_of_all_terms_in_one_vector(update: Update, factor: int) -> None:
    flat = np.concatenate([term.ravel() for term in update.delta.values()]).astype(np.float64)
    assert norm_of(update.delta) == pytest.approx(float(np.linalg.norm(flat)), rel=1e-12)


def test_the_norm_of_large_values_does_not_overflow() -> None:
    assert norm_of({"a": array(3e38, 0), "b": array(0)}) == pytest.approx(3e38)
    assert norm_of({}) == 0


@given(
    hnp.arrays(np.float32, 8, elements=st.floats(-1024, 1024, width=32)),
    st.integers(1, 52),
    st.integers(-60, 0),
)
def test_every_value_is_rounded_half_to_even_whatever_its_size(
    values: F32, bits: int, exponent: int
) -> None:
    values = np.ldexp(values, exponent).astype(np.float32)
    plan = Plan(grid_bits=bits, max_norm=1e8)
    total = total_of(plan, [Update("sum", 1, {"a": values})])
    assert total.terms["a"].tolist() == [on_grid(value, bits) for value in values]


@pytest.mark.parametrize("exponent", [50, 51, 52])  # around the size where another way begins
@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_is_exact_around_the_largest_values_of_the_fast_way(
    exponent: int, sign: int
) -> None:
    values = array(*(sign * (2.0**exponent + 2.0 ** (exponent - 23) * n) for n in range(-3, 4)))
    halves = np.ldexp(values, -(exponent - 22)).astype(np.float32)  # with halves of a step
    for some in (np.ldexp(values, -40), halves):
        total = total_of(Plan(grid_bits=40, max_norm=1e8), [Update("sum", 1, {"a": some})])
        assert total.terms["a"].tolist() == [on_grid(value, 40) for value in some]


@given(st.lists(updates(), min_size=1, max_size=4))
def test_a_check_before_an_addition_changes_nothing(contributions: list[Update]) -> None:
    checked = ExactSum(Plan())
    for update in contributions:
        checked.check(update)
        checked.check(contributions[0])  # another one was checked last
        checked.check(update)
        checked.add(update)
        with pytest.raises(PeerError, match="do not match"):
            checked.check(Update("sum", 1, {"c": array(1)}))
    assert bytes_of(checked) == bytes_of(total_of(Plan(), contributions))


def test_an_update_checked_before_another_was_added_is_checked_against_the_new_sum() -> None:
    total = ExactSum(Plan(grid_bits=52, max_norm=1e8))
    half = Update(
        "sum", 1, {"a": array(1000)}
    )  # 2**52 times 1000: two fit into int64, three do not
    total.add(half)
    third = Update("sum", 1, {"a": array(1000)})
    total.check(third)
    total.merge(total_of(total.plan, [half]))
    with pytest.raises(PeerError, match="overflow"):
        total.add(third)
    assert total.weight == 2


@given(updates(1.0), st.floats(0.01, 10))
def test_the_bound_on_the_norm_is_exact(update: Update, share: float) -> None:
    norm = norm_of(update.delta) / update.weight
    bound = min(max(norm * share, 1e-6), 1e8)
    total = ExactSum(Plan(max_norm=bound))
    if norm > bound:
        with pytest.raises(PeerError, match="norm"):
            total.check(update)
    else:
        total.check(update)


# --- integer sums --------------------------------------------------------------------------------


def whole(*values: int) -> I64:
    return np.array(values, np.int64)


@given(
    st.lists(
        st.tuples(st.integers(1, 2**20), st.lists(st.integers(-(2**30), 2**30), min_size=3)),
        min_size=1,
        max_size=6,
    ),
    st.randoms(),
)
def test_integer_sums_are_exact_in_any_order(
    drawn: list[tuple[int, list[int]]], shuffle: random.Random
) -> None:
    contributions = [
        Update("sum", w, {}, {"g": np.array(values[:3], np.int64) * w}) for w, values in drawn
    ]
    expected = [sum(w * values[i] for w, values in drawn) for i in range(3)]
    shuffle.shuffle(contributions)
    total = total_of(Plan(), contributions)
    assert total.sums["g"].tolist() == expected
    assert total.sums["g"].dtype == np.int64
    assert total.weight == sum(w for w, _ in drawn)


def test_integer_sums_are_added_beside_terms() -> None:
    total = ExactSum(Plan())
    numbers = whole(2**30, -5)
    total.add(Update("sum", 1, {"a": array(0.5)}, {"g": numbers}))
    numbers[:] = 0  # the caller reuses its buffer
    total.add(Update("sum", 1, {"a": array(1.5)}, {"g": whole(1, 1)}))
    assert total.mean()["a"].tolist() == [1.0]
    assert total.sums["g"].tolist() == [2**30 + 1, -4]


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (
            Update("sum", 1, {}, {"g": whole(2**30 + 1)}),
            "integer sum of the update holds 1073741825, which is above",
        ),
        (
            Update("sum", 2, {}, {"g": whole(-(2**31) - 1)}),
            "above 1073741824 times the update's weight 2",
        ),
        (
            Update("sum", 9, {}, {"g": whole(-(2**63))}),
            "integer sum of the update holds 9223372036854775808",
        ),
        (Update("sum", 11, {}, {"g": whole(1)}), "weight 11 is above the plan's max_weight 10"),
        (Update("sum", 1, {}, {"h": whole(1)}), "do not match"),
        (Update("sum", 1, {}, {"g": whole(1, 2)}), "do not match"),
        (Update("sum", 1, {}), "do not match"),
    ],
)
def test_integer_sums_out_of_bounds_are_refused_and_leave_no_trace(
    update: Update, message: str
) -> None:
    total = ExactSum(PLAN)
    total.add(Update("sum", 1, {}, {"g": whole(7)}))
    with pytest.raises(PeerError, match=message):
        total.check(update)
    with pytest.raises(PeerError, match=message):
        total.add(update)
    assert (total.sums["g"].tolist(), total.weight) == ([7], 1)


def test_integer_sums_never_wrap() -> None:
    plan = Plan(max_weight=2**40)
    total, largest = ExactSum(plan), Update("sum", 2**32, {}, {"g": whole(2**62)})
    total.add(largest)
    with pytest.raises(PeerError, match="integer sums would overflow"):
        total.add(largest)
    assert total.sums["g"].tolist() == [2**62]


@given(st.lists(updates(), min_size=1, max_size=6), st.integers(0, 6), BITS)
def test_partial_sums_add_up_to_the_whole(all_: list[Update], cut: int, bits: int) -> None:
    plan = Plan(grid_bits=bits, max_norm=1e6)
    total = total_of(plan, all_[:cut])
    other = total_of(plan, all_[cut:])
    before = bytes_of(other)
    total.merge(other)
    assert bytes_of(total) == bytes_of(total_of(plan, all_))
    total.merge(total_of(plan, all_[:1]))
    assert bytes_of(other) == before  # merging does not change the merged sum


def test_partial_sums_that_overflow_or_do_not_fit_are_refused_whole() -> None:
    plan = Plan(grid_bits=52, max_norm=1e9 - 1)
    large = Update("sum", 1, {"a": np.array([1500.0], np.float32)})
    total, other = total_of(plan, [large]), total_of(plan, [large])
    before = bytes_of(total)
    with pytest.raises(PeerError, match="would overflow"):
        total.merge(other)
    strange = total_of(plan, [Update("sum", 1, {"b": np.array([1.0], np.float32)})])
    with pytest.raises(PeerError, match="do not match"):
        total.merge(strange)
    assert bytes_of(total) == before
