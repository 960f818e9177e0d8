"""Uploads: a few slots, repeated requests for missing chunks, a new start after damage."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip_edge.coordinator.slots import Slots
from fedclip_edge.coordinator.uploads import LEASE_S, REPAIR_S, Uploads
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol.chunks import blob_of, split
from fedclip_edge.protocol.message_parts import Blob
from fedclip_edge.protocol.messages import Offer, Want


def body(device: str) -> bytes:
    return device.encode() * 50


def blob(device: str) -> Blob:
    return blob_of(body(device), "update", 16)


def sent(device: str) -> list[bytes]:
    return list(split(body(device), blob(device)))


def offered(uploads: Uploads, *devices: str) -> None:
    for device in devices:
        uploads.remember(device, Offer("run-1", 1, blob(device)))
        uploads.request(device)


def make(count: int = 2) -> Uploads:
    return Uploads(Slots(count, LEASE_S))


def everything(device: str) -> Want:
    return Want(blob(device).sha256, ((0, blob(device).chunks - 1),))


def test_who_has_a_slot_is_asked_for_everything_once() -> None:
    uploads = make(2)
    offered(uploads, "a", "b", "c")
    assert uploads.poll_wants(0.0) == [("a", everything("a")), ("b", everything("b"))]
    assert uploads.poll_wants(0.5) == []


def test_the_next_is_asked_when_one_is_done() -> None:
    uploads = make(1)
    offered(uploads, "a", "b")
    uploads.poll_wants(0.0)
    for chunk in sent("a")[:-1]:
        assert uploads.receive_chunk("a", chunk, 0.1) is None
    assert uploads.receive_chunk("a", sent("a")[-1], 0.1) == body("a")
    uploads.release("a")
    assert uploads.poll_wants(0.2) == [("b", everything("b"))]


def test_memory_is_taken_for_holders_only() -> None:
    uploads = make(1)
    offered(uploads, "a", "b")
    uploads.poll_wants(0.0)
    for device in ("b", "stranger"):
        assert uploads.receive_chunk(device, sent("b")[0], 0.1) is None
    assert set(uploads._incoming) == {"a"}


def test_what_a_stranger_sends_is_not_even_read() -> None:
    assert make().receive_chunk("stranger", b"\xfc\x1e nonsense", 0.0) is None


def test_who_falls_silent_is_asked_for_what_is_missing() -> None:
    uploads = make()
    offered(uploads, "a")
    uploads.poll_wants(0.0)
    for index in (0, 2):
        uploads.receive_chunk("a", sent("a")[index], 1.0)
    assert uploads.poll_wants(1.0 + REPAIR_S - 0.1) == []
    want = Want(blob("a").sha256, ((1, 1), (3, 3)))
    assert blob("a").chunks == 4
    assert uploads.poll_wants(1.0 + REPAIR_S) == [("a", want)]
    assert uploads.poll_wants(1.5 + REPAIR_S) == []  # not repeated at every tick
    assert uploads.poll_wants(1.0 + 2 * REPAIR_S) == [("a", want)]


def test_who_makes_progress_is_not_disturbed() -> None:
    uploads = make()
    offered(uploads, "a")
    uploads.poll_wants(0.0)
    for step, chunk in enumerate(sent("a")[:-1]):
        uploads.receive_chunk("a", chunk, step * (REPAIR_S - 0.1))
        assert uploads.poll_wants(step * (REPAIR_S - 0.1) + 0.1) == []


def test_a_damaged_chunk_is_said_and_is_no_progress() -> None:
    uploads = make()
    offered(uploads, "a")
    uploads.poll_wants(0.0)
    with pytest.raises(PeerError, match="CRC-32"):
        uploads.receive_chunk("a", sent("a")[0][:-1] + b"?", 1.9)
    assert uploads.poll_wants(REPAIR_S) == [("a", everything("a"))]


def test_a_chunk_that_comes_twice_is_no_progress() -> None:
    uploads = make()
    offered(uploads, "a")
    uploads.poll_wants(0.0)
    uploads.receive_chunk("a", sent("a")[0], 1.0)
    for now in (10.0, 20.0, 30.9):
        uploads.receive_chunk("a", sent("a")[0], now)
        assert uploads.expire(now) == ()
    assert uploads.expire(1.0 + LEASE_S) == ("a",)


def test_a_wrong_hash_fetches_everything_again_at_once() -> None:
    uploads = make()
    forged = Blob(blob("a").sha256[:16] + "0" * 48, len(body("a")), "update", 16)
    uploads.remember("a", Offer("run-1", 1, forged))
    uploads.request("a")
    uploads.poll_wants(0.0)
    *most, last = sent("a")
    for chunk in most:
        uploads.receive_chunk("a", chunk, 0.1)
    with pytest.raises(PeerError, match="another SHA-256"):
        uploads.receive_chunk("a", last, 0.1)
    assert uploads.poll_wants(0.2) == [("a", Want(forged.sha256, ((0, 3),)))]


def test_without_progress_for_a_lease_the_slot_goes_to_the_next() -> None:
    uploads = make(1)
    offered(uploads, "a", "b")
    uploads.poll_wants(0.0)
    uploads.receive_chunk("a", sent("a")[0], 5.0)
    assert uploads.expire(LEASE_S + 4.9) == ()
    assert uploads.expire(LEASE_S + 5.0) == ("a",)
    assert uploads.poll_wants(LEASE_S + 5.0) == [("b", everything("b"))]
    assert uploads.receive_chunk("a", sent("a")[1], LEASE_S + 6.0) is None  # too late
    uploads.request("a")  # the device offers again
    uploads.release("b")
    # All chunks are requested again.
    assert uploads.poll_wants(LEASE_S + 7.0) == [("a", everything("a"))]


def test_an_offer_said_again_is_answered_at_once() -> None:
    uploads = make()
    offered(uploads, "a")
    uploads.poll_wants(0.0)
    uploads.receive_chunk("a", sent("a")[0], 0.1)
    offered(uploads, "a")
    assert uploads.poll_wants(0.2) == [("a", Want(blob("a").sha256, ((1, 3),)))]


def test_another_offer_replaces_what_has_come_so_far() -> None:
    uploads = make()
    offered(uploads, "a")
    uploads.poll_wants(0.0)
    uploads.receive_chunk("a", sent("a")[0], 0.1)
    uploads.remember("a", Offer("run-1", 1, blob("b")))
    uploads.request("a")
    assert uploads.offer_of("a").blob == blob("b")
    assert uploads.poll_wants(0.2) == [("a", everything("b"))]
    assert uploads.receive_chunk("a", sent("a")[1], 0.3) is None
    for chunk in sent("b")[:-1]:
        uploads.receive_chunk("a", chunk, 0.3)
    assert uploads.receive_chunk("a", sent("b")[-1], 0.3) == body("b")


def test_when_the_round_is_over_nothing_is_held_or_asked() -> None:
    uploads = make(1)
    offered(uploads, "a", "b")
    uploads.poll_wants(0.0)
    uploads.receive_chunk("a", sent("a")[0], 0.1)
    uploads.release_all()
    assert uploads.poll_wants(10.0) == []
    assert uploads._incoming == {}
    assert uploads.expire(100.0) == ()


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_everything_arrives_over_a_link_that_drops_repeats_and_reorders(
    devices: int, slots: int, seed: int
) -> None:
    """Each device answers every request; half of the chunks are lost."""
    luck = random.Random(seed)
    names = [f"device-{i}" for i in range(devices)]
    uploads, arrived, now = make(slots), dict[str, bytes](), 0.0
    offered(uploads, *names)
    while len(arrived) < devices:
        assert now < 600, "an upload never ends"
        air = [
            (device, chunk)
            for device, want in uploads.poll_wants(now)
            for chunk in split(body(device), blob(device), want.missing)
            for _ in range(luck.choice([0, 1, 1, 2]))
        ]
        luck.shuffle(air)
        for device, chunk in air:
            whole = uploads.receive_chunk(device, chunk, now)
            if whole is not None:
                assert device not in arrived
                arrived[device] = whole
                uploads.release(device)
        assert len(uploads.slots.holders) <= slots
        for device in uploads.expire(now):
            uploads.request(device)
        now += 0.5
    assert arrived == {device: body(device) for device in names}


def test_who_comes_back_goes_on_where_its_link_broke() -> None:
    uploads = make(1)
    offered(uploads, "a")
    uploads.poll_wants(0.0)
    for chunk in sent("a")[:-1]:
        uploads.receive_chunk("a", chunk, 0.1)
    uploads.leave("a")
    assert uploads.poll_wants(5.0) == [], "the device has left"
    offered(uploads, "a")
    last = blob("a").chunks - 1
    assert uploads.poll_wants(6.0) == [("a", Want(blob("a").sha256, ((last, last),)))]
    assert uploads.receive_chunk("a", sent("a")[-1], 6.1) == body("a")


def test_who_left_gives_its_slot_to_who_is_there() -> None:
    uploads = make(1)
    offered(uploads, "a")
    uploads.poll_wants(0.0)
    uploads.leave("a")
    offered(uploads, "b")
    assert uploads.poll_wants(1.0) == [("b", everything("b"))]
    offered(uploads, "a")
    uploads.release("b")
    assert uploads.poll_wants(2.0) == [("a", everything("a"))]


def test_who_left_waiting_does_not_wait_any_more() -> None:
    uploads = make(1)
    offered(uploads, "a", "b")
    uploads.poll_wants(0.0)
    uploads.leave("b")
    uploads.release("a")
    assert uploads.poll_wants(1.0) == []
