"""The hash of an exchange."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fedclip_edge.protocol.exchange import open_exchange
from fedclip_edge.records import Plan

PLAN = Plan(rounds=3, options={"lr": 0.5, "loss": "x"})
FIELDS: dict[str, Any] = {
    "run": "run-1",
    "number": 1,
    "model": "a" * 64,
    "plan": PLAN,
    "encoder_id": "e",
    "classes_digest": "c",
    "max_norm": 1.5,
}
OTHERS: dict[str, Any] = {
    "run": "run-2",
    "number": 2,
    "model": "b" * 64,
    "plan": replace(PLAN, seed=1),
    "encoder_id": "f",
    "classes_digest": "d",
    "max_norm": 1.5000000000000002,
}


@pytest.mark.parametrize("name", FIELDS)
def test_another_exchange_has_another_hash(name: str) -> None:
    other = open_exchange("round", **{**FIELDS, name: OTHERS[name]})
    assert open_exchange("round", **FIELDS).sha256 != other.sha256


def test_a_vote_is_another_exchange_than_a_round() -> None:
    vote = open_exchange("vote", **FIELDS)
    assert vote.kind == "vote"
    assert open_exchange("round", **FIELDS).sha256 != vote.sha256


def test_the_same_exchange_has_the_same_hash_whatever_the_order_of_options() -> None:
    plan = replace(PLAN, options={"loss": "x", "lr": 0.5})
    assert open_exchange("round", **{**FIELDS, "plan": plan}) == open_exchange("round", **FIELDS)


def test_a_bound_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="max_norm"):
        open_exchange("round", **{**FIELDS, "max_norm": 0.0})
