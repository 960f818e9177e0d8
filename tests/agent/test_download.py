"""Chunk requests of a download: the first is for all chunks, later ones are small."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.agent.download import REPAIR_S, Download
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol.chunks import blob_of, split
from fedclip_edge.protocol.messages import Want

BODY = bytes(range(256)) * 4
BLOB = blob_of(BODY, "model", 64)
SENT = list(split(BODY, BLOB))


def expecting() -> Download:
    download = Download()
    download.expect(BLOB, since=0.0)
    return download


def test_nothing_is_asked_for_while_nothing_is_expected() -> None:
    assert Download().poll_want(100.0) is None


def test_all_gaps_are_asked_for_first_and_a_few_after_that() -> None:
    download = expecting()
    download.receive_chunk(SENT[3], 0.0)
    assert download.poll_want(REPAIR_S - 0.1) is None
    last = len(SENT) - 1
    assert download.poll_want(REPAIR_S) == Want(BLOB.sha256, ((0, 2), (4, last)))
    assert download.poll_want(2 * REPAIR_S) == Want(BLOB.sha256, ((0, 2), (4, 4)))
    assert download.poll_want(3 * REPAIR_S) is None, "requests become less frequent"


def test_who_missed_the_broadcast_asks_at_once_and_for_all() -> None:
    download = expecting()
    download.poll_want(REPAIR_S)
    download.hurry(REPAIR_S)
    assert download.poll_want(REPAIR_S) == Want(BLOB.sha256, ((0, len(SENT) - 1),))


def test_chunks_of_another_model_do_not_count() -> None:
    download = expecting()
    other = blob_of(BODY[::-1], "model", 64)
    download.expect(other, since=1.0)
    download.receive_chunk(SENT[0], 1.0)
    assert download.poll_want(1.0 + REPAIR_S) == Want(other.sha256, ((0, len(SENT) - 1),))


@given(st.randoms(use_true_random=False))
def test_any_order_any_number_of_times(order: random.Random) -> None:
    download = expecting()
    some = order.choices(SENT, k=len(SENT)) + SENT
    order.shuffle(some)
    for chunk in some:
        download.receive_chunk(chunk, 0.0)
    assert download.has(blob_of(BODY, "model", 64))
    assert not download.has(blob_of(BODY[:-1] + b"!", "model", 64))
    assert download.assemble() == BODY
    assert not download.has(blob_of(BODY, "model", 64))


def test_a_wrong_hash_is_told_and_all_of_it_fetched_anew() -> None:
    lie = blob_of(BODY[:-1] + b"!", "model", 64)
    download = Download()
    download.expect(lie, since=0.0)
    head = SENT[0][:4] + bytes.fromhex(lie.sha256)[:8]
    for chunk in SENT:
        download.receive_chunk(head + chunk[len(head) :], 0.0)
    assert download.has(lie)
    with pytest.raises(PeerError, match="another SHA-256"):
        download.assemble()
    download.expect(lie, since=5.0)
    assert not download.has(lie)
