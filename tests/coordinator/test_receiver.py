"""The receiver: each contribution is checked as a whole, and its device gets an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from receiver_desk import DOWN, PLAN, Desk

from fedclip_edge.coordinator.receiver import UnfitError
from fedclip_edge.coordinator.round_events import Arrived, Offered
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol import chunks, wire
from fedclip_edge.protocol.message_parts import Blob
from fedclip_edge.protocol.messages import Kept, Offer, Refused
from fedclip_edge.records import Plan, Update

SUMMING = Plan("ridge", codec_up="fp32")  # its updates also contain whole numbers (sums)


@pytest.fixture
def desk(tmp_path: Path, plan: Plan) -> Iterator[Desk]:
    made = Desk(tmp_path, plan)
    yield made
    made.run_state.journal.close()


def test_an_offer_that_fits_is_left_to_the_round(desk: Desk) -> None:
    offer = desk.offer(desk.body())
    decided = desk.receiver.receive_offer("cam-0", offer)
    assert decided == Offered("cam-0", 1, offer.blob.sha256)
    assert desk.heard() == []


def test_an_offer_to_another_run_is_answered_and_goes_no_further(desk: Desk) -> None:
    offer = replace(desk.offer(desk.body()), run="run-0")
    assert desk.receiver.receive_offer("cam-0", offer) is None
    refused = Refused(
        f"not for the open run {desk.run.id}", "contribution", sha256=offer.blob.sha256
    )
    assert desk.heard() == [(DOWN, refused)]


@pytest.mark.parametrize("plan", [PLAN, SUMMING], ids=["terms", "terms and sums"])
def test_an_offer_is_as_large_as_a_contribution_can_be_and_no_larger(
    desk: Desk, plan: Plan
) -> None:
    limit = max(
        wire.payload_limit_bytes(layout.delta, plan.codec_up, layout.sums)
        for layout in desk.run_state.schedule.layouts()  # a round's and the vote's
    )
    largest = Offer(desk.run.id, 1, Blob("a" * 64, limit, "update"))
    assert desk.receiver.receive_offer("cam-0", largest) is not None
    larger = replace(largest, blob=Blob("a" * 64, limit + 1, "update"))
    with pytest.raises(PeerError, match=f"an offer of {limit + 1} bytes, limit {limit}"):
        desk.receiver.receive_offer("cam-0", larger)


def test_only_what_a_closed_round_has_is_acknowledged_again(desk: Desk) -> None:
    offer = desk.close_round_with(desk.body())
    assert desk.receiver.receive_offer("cam-0", offer) is None
    assert desk.heard() == [(DOWN, Kept(desk.run.id, 1, offer.blob.sha256))]
    assert desk.receiver.receive_offer("cam-1", offer) is not None, (
        "this contribution belongs to another device"
    )
    assert desk.heard() == []


@pytest.mark.parametrize("plan", [PLAN, SUMMING], ids=["terms", "terms and sums"])
def test_a_contribution_arrives_with_its_last_chunk_as_it_was_sent(desk: Desk, plan: Plan) -> None:
    body = desk.body()
    before, arrived = desk.upload(body)
    assert before is None
    assert arrived is not None
    assert arrived.event == Arrived("cam-0", 1, chunks.blob_of(body, "update").sha256)
    assert arrived.payload == body
    assert wire.pack_contribution(arrived.contribution, plan.codec_up) == body
    assert not desk.receiver.uploads.slots.holds("cam-0"), "the slot is free for the next device"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "run": ({"run": "run-0"}, "run is 'run-0'"),
    "round": ({"round": 2}, "round is '2', expected 1"),
    "device": ({"device": "cam-1"}, "device is 'cam-1'"),
    "exchange": ({"exchange": "a" * 64}, "exchange is 'aaa"),
    "terms": ({"update": Update("sum", 1, {})}, "expected the tensors"),
    "kind": ({"kind": "single"}, "kind 'single'; the strategy fedavg needs kind 'sum'"),
    "no contribution": ({}, "not a complete zstd frame"),
}


@pytest.mark.parametrize(("changes", "reason"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_whatever_is_wrong_with_it(
    desk: Desk, changes: dict[str, Any], reason: str
) -> None:
    body = desk.body(**changes) if changes else b"no contribution"
    with pytest.raises(UnfitError, match=reason) as refused:
        desk.upload(body)
    assert refused.value.round == 1
    answer = Refused(
        str(refused.value), "contribution", sha256=chunks.blob_of(body, "update").sha256
    )
    assert desk.heard() == [(DOWN, answer)]
    assert not desk.receiver.uploads.slots.holds("cam-0")


def test_kept_is_said_of_what_was_offered_last(desk: Desk) -> None:
    for body in (b"an earlier one", desk.body()):
        desk.receiver.receive_offer("cam-0", desk.offer(body))
    desk.receiver.publisher.send("cam-0", desk.receiver.kept("cam-0"))
    sha256 = chunks.blob_of(desk.body(), "update").sha256
    assert desk.heard() == [(DOWN, Kept(desk.run.id, 1, sha256))]


def test_a_refusal_says_how_many_rounds_are_closed(desk: Desk) -> None:
    offer = desk.close_round_with(desk.body())
    desk.receiver.refuse("cam-0", "it came late")
    refused = Refused("it came late", "contribution", sha256=offer.blob.sha256, closed=1)
    assert desk.heard() == [(DOWN, refused)]
