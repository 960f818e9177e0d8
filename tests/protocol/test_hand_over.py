"""Statements that one key of a coordinator follows another."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.protocol.hand_over import HandOver, hand_over, newest_key
from fedclip_edge.protocol.signing import create_identity

KEYS = [create_identity() for _ in range(5)]
CHAIN = tuple(hand_over(old, new.key) for old, new in pairwise(KEYS))
STRANGER = create_identity()


@given(st.integers(0, 4), st.permutations(CHAIN))
def test_true_statements_lead_from_any_key_to_the_newest(
    start: int, statements: list[HandOver]
) -> None:
    assert newest_key(KEYS[start].key, statements) == KEYS[-1].key


@pytest.mark.parametrize(
    "forged",
    [
        replace(CHAIN[0], new=STRANGER.key),  # signed for another key
        replace(hand_over(STRANGER, STRANGER.key), old=KEYS[0].key),  # signed by another key
        replace(CHAIN[0], signature="0" * 128),
    ],
)
def test_a_false_statement_leads_nowhere(forged: HandOver) -> None:
    assert newest_key(KEYS[0].key, [forged]) == KEYS[0].key
    assert not forged.is_true


def test_a_missing_statement_ends_the_chain() -> None:
    assert newest_key(KEYS[0].key, [CHAIN[0], CHAIN[2]]) == KEYS[1].key
    assert newest_key(STRANGER.key, CHAIN) == STRANGER.key
    assert newest_key("", CHAIN) == ""


def test_statements_in_a_circle_end() -> None:
    circle = [*CHAIN, hand_over(KEYS[-1], KEYS[0].key), hand_over(STRANGER, STRANGER.key)]
    assert newest_key(KEYS[0].key, circle) == KEYS[-1].key
    assert newest_key(STRANGER.key, circle) == STRANGER.key


def test_a_signature_of_a_message_is_no_statement() -> None:
    """The one key signs both, so their bytes must differ from the first one on."""
    body = bytes.fromhex(KEYS[0].key) + bytes.fromhex(STRANGER.key)
    for message in (body, b"fedclip/v2/lab/coord/state\0" + body):
        forged = HandOver(KEYS[0].key, STRANGER.key, KEYS[0].sign(message).hex())
        assert not forged.is_true
